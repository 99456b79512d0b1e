//! What a FLUX checkpoint says about its transformer and its two text encoders.

use std::path::Path;

use serde::Deserialize;

use super::t5::T5Config;
use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::sd::config::TextEncoderConfig;
use crate::tokenizer_config::pad_token;

const TRANSFORMER: Fixed =
    &[("_class_name", &["\"FluxTransformer2DModel\""]), ("guidance_embeds", &["false"]), ("patch_size", &["1"])];
const CLIP: Fixed = &[("model_type", &["\"clip_text_model\""])];
const T5: Fixed = &[
    ("dense_act_fn", &["\"gelu_new\""]),
    ("feed_forward_proj", &["\"gated-gelu\""]),
    ("is_gated_act", &["true"]),
    ("model_type", &["\"t5\""]),
];

/// `transformer/config.json` of diffusers' `FluxTransformer2DModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct TransformerConfig {
    /// Values of a token: latent channels times 2x2.
    pub in_channels: usize,
    /// Those that are predicted; none: as many.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Blocks in which text and image have layers of their own.
    pub num_layers: usize,
    /// Blocks that both go through as one sequence.
    pub num_single_layers: usize,
    pub attention_head_dim: usize,
    pub num_attention_heads: usize,
    /// Width of T5's hidden states.
    pub joint_attention_dim: usize,
    /// Width of CLIP's pooled text.
    pub pooled_projection_dim: usize,
    /// Widths of a head's values that turn with nothing, the row and the column. FLUX.1's own file leaves them out.
    #[serde(default = "axes")]
    pub axes_dims_rope: [usize; 3],
}

impl TransformerConfig {
    /// Width of the hidden states.
    pub(super) fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    fn check(&self, clip: &TextEncoderConfig, t5: &T5Config) -> Result<(), &'static str> {
        let axes = self.axes_dims_rope;
        let wrong = [
            (self.width() == 0 || self.in_channels == 0, "its sizes must not be 0"),
            (!self.in_channels.is_multiple_of(4), "in_channels must be 4 times the VAE's latent_channels"),
            (self.out_channels.is_some_and(|out| out != self.in_channels), "out_channels must be in_channels, or null"),
            (axes.iter().sum::<usize>() != self.attention_head_dim, "axes_dims_rope must add up to attention_head_dim"),
            (axes.iter().any(|width| width % 2 == 1), "axes_dims_rope must be even"),
            (self.joint_attention_dim != t5.d_model, "joint_attention_dim must be text_encoder_2's d_model"),
            (self.pooled_projection_dim != clip.hidden_size, "pooled_projection_dim must be text_encoder's hidden_size"),
        ];
        wrong.iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, problem)| Err(*problem))
    }
}

/// All that is read of a checkpoint but for autoencoder and schedule.
#[derive(Debug, Clone)]
pub struct Config {
    pub transformer: TransformerConfig,
    pub clip: TextEncoderConfig,
    /// What CLIP's tokenizer fills short prompts up with.
    pub clip_pad: String,
    pub t5: T5Config,
}

impl Config {
    /// Reads the `config.json` of `transformer/`, `text_encoder/` and `text_encoder_2/` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub(super) fn read(directory: &Path) -> Result<Self, EngineError> {
        for component in ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
            if !directory.join(component).is_dir() {
                let problem = "is missing: FLUX has two text encoders, CLIP and T5, and two tokenizers".to_owned();
                return Err(EngineError::Checkpoint { path: directory.join(component), problem });
            }
        }
        let path = directory.join("transformer/config.json");
        let transformer: TransformerConfig = read(&path, TRANSFORMER)?;
        let clip: TextEncoderConfig = read(&directory.join("text_encoder/config.json"), CLIP)?;
        let t5: T5Config = read(&directory.join("text_encoder_2/config.json"), T5)?;
        let checked = transformer.check(&clip, &t5);
        checked.map_err(|problem| EngineError::Checkpoint { path, problem: problem.to_owned() })?;
        t5.check().map_err(|problem| EngineError::Checkpoint {
            path: directory.join("text_encoder_2"),
            problem: problem.to_owned(),
        })?;
        Ok(Self { transformer, clip, clip_pad: pad_token(&directory.join("tokenizer"))?, t5 })
    }
}

fn axes() -> [usize; 3] {
    [16, 56, 56]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of FLUX.1-schnell's own file, of which a later diffusers writes more.
    #[test]
    fn the_published_configuration_is_read() {
        let published = r#"{"_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0", "attention_head_dim": 128,
            "guidance_embeds": false, "in_channels": 64, "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19,
            "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768}"#;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), published).expect("writes");
        let config: TransformerConfig = read(file.path(), TRANSFORMER).expect("reads");
        assert_eq!((config.axes_dims_rope, config.width()), ([16, 56, 56], 3072));
    }
}
