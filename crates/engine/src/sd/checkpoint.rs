//! Reads the JSON files of a Stable Diffusion checkpoint in diffusers' layout.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::{TextEncoderConfig, UnetConfig, VaeConfig};
use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::schedule::config::{Pipeline, ScheduleConfig};
use crate::tokenizer_config::pad_token;

/// The most steps a request may ask for; the training schedule must have room for them.
const MAX_STEPS: usize = 200;

/// What a checkpoint says about itself.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub directory: PathBuf,
    pub unet: UnetConfig,
    pub vae: VaeConfig,
    pub text_encoder: TextEncoderConfig,
    pub schedule: ScheduleConfig,
    /// What short prompts are filled up with.
    pub pad_token: String,
}

/// Pipelines around the same weights: what a job asks for decides what is done with them.
const PIPELINE: Fixed = &[(
    "_class_name",
    &[
        "\"StableDiffusionPipeline\"",
        "\"StableDiffusionImg2ImgPipeline\"",
        "\"StableDiffusionInpaintPipeline\"",
        "\"StableDiffusionInpaintPipelineLegacy\"",
        "\"StableDiffusionPipelineSafe\"",
        "\"StableDiffusionPAGPipeline\"",
        "\"StableDiffusionControlNetPipeline\"",
        "\"StableDiffusionControlNetImg2ImgPipeline\"",
        "\"StableDiffusionControlNetInpaintPipeline\"",
        "\"StableDiffusionAdapterPipeline\"",
        "\"LatentConsistencyModelPipeline\"",
        "\"LatentConsistencyModelImg2ImgPipeline\"",
        "\"StableDiffusionInstructPix2PixPipeline\"",
    ],
)];

const UNET: Fixed = &[
    ("act_fn", &["\"silu\""]),
    ("addition_embed_type", &["null"]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("downsample_padding", &["1"]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("mid_block_only_cross_attention", &["null", "false"]),
    ("mid_block_scale_factor", &["1"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_dim", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &["null"]),
];

const VAE: Fixed = &[
    ("act_fn", &["\"silu\""]),
    ("latents_mean", &["null"]),
    ("latents_std", &["null"]),
    ("mid_block_add_attention", &["true"]),
    ("out_channels", &["3"]),
];

impl Checkpoint {
    /// Reads `model_index.json`, the components' `config.json`, `scheduler/scheduler_config.json` and the pad token of
    /// `tokenizer/` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub fn read(directory: &Path) -> Result<Self, EngineError> {
        read::<Value>(&directory.join("model_index.json"), PIPELINE)?;
        let checkpoint = Self {
            directory: directory.to_owned(),
            unet: read(&directory.join("unet/config.json"), UNET)?,
            vae: read(&directory.join("vae/config.json"), VAE)?,
            text_encoder: read(&directory.join("text_encoder/config.json"), &[])?,
            schedule: read(&directory.join("scheduler/scheduler_config.json"), &[])?,
            pad_token: pad_token(&directory.join("tokenizer"))?,
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// What one file must say for the code to make sense, and the files for each other.
    fn check(&self) -> Result<(), EngineError> {
        let Self { unet, vae, text_encoder, schedule, .. } = self;
        let blocks = unet.block_out_channels.len();
        let latents = vae.latent_channels;
        let heads = text_encoder.num_attention_heads;
        // Every pipeline makes any offset 1.
        let room = MAX_STEPS * (schedule.corrected_for(Pipeline::TextToImage).steps_offset() + 1);
        let betas = schedule.trained_betas.as_ref().map_or(schedule.num_train_timesteps, Vec::len);
        let wrong = [
            (blocks == 0, "unet", "block_out_channels must not be empty"),
            (unet.down_block_types.len() != blocks, "unet", "down_block_types must be as many as block_out_channels"),
            (unet.up_block_types.len() != blocks, "unet", "up_block_types must be as many as block_out_channels"),
            ((0..blocks).any(|index| unet.heads(index) == 0), "unet", "attention_head_dim must not be 0"),
            (unet.out_channels != latents, "unet", "out_channels must be the VAE's latent_channels"),
            (![latents, 2 * latents, 2 * latents + 1].contains(&unet.in_channels), "unet", IN_CHANNELS),
            (unet.time_cond_proj_dim.is_some_and(|width| width < 4), "unet", "time_cond_proj_dim must be 4 or more"),
            (unet.cross_attention_dim != text_encoder.hidden_size, "unet", "cross_attention_dim must be hidden_size"),
            (vae.block_out_channels.is_empty(), "vae", "block_out_channels must not be empty"),
            (heads == 0, "text_encoder", "num_attention_heads must not be 0"),
            (text_encoder.max_position_embeddings < 3, "text_encoder", "max_position_embeddings must be 3 or more"),
            (schedule.num_train_timesteps < room, "scheduler", "num_train_timesteps has no room for 200 steps"),
            (schedule.num_train_timesteps != betas, "scheduler", "trained_betas must be as many as num_train_timesteps"),
        ];
        match wrong.iter().find(|(is_wrong, ..)| *is_wrong) {
            None => Ok(()),
            Some((_, component, problem)) => {
                Err(EngineError::Checkpoint { path: self.directory.join(component), problem: (*problem).to_owned() })
            }
        }
    }
}

const IN_CHANNELS: &str = "in_channels must be the VAE's latent_channels, twice as many for instruct-pix2pix, or twice as many and 1 for inpainting; \
                           other inputs are not supported";
