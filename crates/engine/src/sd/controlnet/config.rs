//! Sizes of a ControlNet: as its config.json states them, or those of the UNet that it belongs to.

use std::path::Path;

use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::sd::config::{UnetConfig, VaeConfig};

const CONTROLNET: Fixed = &[
    ("_class_name", &["\"ControlNetModel\""]),
    ("act_fn", &["\"silu\""]),
    ("addition_embed_type", &["null", "\"text_time\""]),
    ("class_embed_type", &["null"]),
    ("conditioning_channels", &["3"]),
    ("controlnet_conditioning_channel_order", &["\"rgb\"", "\"bgr\""]),
    ("downsample_padding", &["1"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("global_pool_conditions", &["false"]),
    ("mid_block_scale_factor", &["1"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\"", "null"]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
];

/// `config.json`, diffusers' `ControlNetModel`.
#[derive(Debug, Clone)]
pub(super) struct ControlNetConfig {
    /// Of its UNet's first half, which has no output and no way up.
    pub(super) encoder: UnetConfig,
    /// Of the convolutions over the image, each half as large as the one before.
    pub(super) hint_channels: Vec<usize>,
    /// Whether it was trained on images whose first channel is blue.
    pub(super) is_bgr: bool,
}

/// What stands next to the encoder's sizes.
#[derive(Deserialize)]
struct Hint {
    #[serde(default = "hint_channels")]
    conditioning_embedding_out_channels: Vec<usize>,
    #[serde(default)]
    controlnet_conditioning_channel_order: Option<String>,
}

impl ControlNetConfig {
    /// Of the images.
    pub(super) const IMAGE_CHANNELS: usize = 3;

    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub(super) fn read(path: &Path) -> Result<Self, EngineError> {
        let hint: Hint = read(path, CONTROLNET)?;
        Ok(Self {
            encoder: read(path, &[])?,
            hint_channels: hint.conditioning_embedding_out_channels,
            is_bgr: hint.controlnet_conditioning_channel_order.as_deref() == Some("bgr"),
        })
    }

    /// Of a file without a config.json: its sizes must be those of the `unet` that it belongs to.
    pub(super) fn of_unet(unet: &UnetConfig, hint_channels: Vec<usize>) -> Self {
        let encoder = UnetConfig { in_channels: unet.out_channels, time_cond_proj_dim: None, ..unet.clone() };
        Self { encoder, hint_channels, is_bgr: false }
    }

    /// Channels of every layer on the way down that the UNet's way up looks at, from the outermost.
    pub(super) fn skip_channels(&self) -> Vec<usize> {
        let widths = &self.encoder.block_out_channels;
        let mut channels = vec![widths[0]];
        for (level, width) in widths.iter().enumerate() {
            let is_last = level + 1 == widths.len();
            let layers = self.encoder.layers_per_block.at(level) + usize::from(!is_last);
            channels.extend(vec![*width; layers]);
        }
        channels
    }

    /// Why it cannot be one of a model with this UNet and VAE, if it cannot.
    pub(super) fn mismatch(&self, unet: &UnetConfig, vae: &VaeConfig) -> Option<String> {
        let own = &self.encoder;
        let widths = |config: &UnetConfig| format!("{:?}", config.block_out_channels);
        let layers = |config: &UnetConfig| format!("{:?}", config.layers());
        let family = |config: &UnetConfig| if config.is_xl() { "Stable Diffusion XL" } else { "Stable Diffusion 1 or 2" };
        let added = |config: &UnetConfig| format!("{:?}", config.projection_class_embeddings_input_dim);
        if own.is_xl() != unet.is_xl() {
            return Some(format!("is a ControlNet of {}, and the model is of {}", family(own), family(unet)));
        }
        let wrong = [
            ("block_out_channels", widths(own), widths(unet)),
            ("layers_per_block", layers(own), layers(unet)),
            ("cross_attention_dim", own.cross_attention_dim.to_string(), unet.cross_attention_dim.to_string()),
            ("in_channels", own.in_channels.to_string(), unet.out_channels.to_string()),
            ("projection_class_embeddings_input_dim", added(own), added(unet)),
        ];
        let found = wrong
            .into_iter()
            .find(|(what, own, models)| own != models && (*what != "projection_class_embeddings_input_dim" || unet.is_xl()));
        if let Some((what, own, models)) = found {
            return Some(format!("{what} is {own}, but the model's UNet has {models}"));
        }
        let levels = own.block_out_channels.len();
        if own.down_block_types.len() != levels {
            return Some("down_block_types must be as many as block_out_channels".into());
        }
        if (0..levels).any(|level| own.heads(level) == 0) {
            return Some("attention_head_dim must not be 0".into());
        }
        let halvings = vae.block_out_channels.len();
        (self.hint_channels.len() != halvings).then(|| {
            let found = self.hint_channels.len();
            format!(
                "conditioning_embedding_out_channels has {found} numbers, but must have {halvings} to bring an image to the size of the \
                 model's latents"
            )
        })
    }
}

fn hint_channels() -> Vec<usize> {
    vec![16, 32, 96, 256]
}
