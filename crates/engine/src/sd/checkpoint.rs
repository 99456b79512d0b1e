//! Reads the JSON files of a Stable Diffusion checkpoint in diffusers' layout.

use std::path::{Path, PathBuf};

use candle_core::DType;
use serde_json::Value;

use super::clip::TextOutput;
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
    /// One, or SDXL's two.
    pub text_encoders: Vec<EncoderFiles>,
    pub schedule: ScheduleConfig,
    /// SDXL: whether an empty negative prompt is zeros, and not the states of an empty text.
    pub zeroes_empty_negative: bool,
}

/// A text encoder and its tokenizer.
#[derive(Debug, Clone)]
pub struct EncoderFiles {
    /// Its directory, with which the names of its tensors begin.
    pub component: &'static str,
    /// The directory of its tokenizer.
    pub tokenizer: &'static str,
    pub config: TextEncoderConfig,
    /// What is taken from it.
    pub output: TextOutput,
    /// What short prompts are filled up with.
    pub pad_token: String,
}

impl EncoderFiles {
    fn read(
        directory: &Path,
        (component, tokenizer): (&'static str, &'static str),
        output: TextOutput,
    ) -> Result<Self, EngineError> {
        let config = read(&directory.join(component).join("config.json"), &[])?;
        Ok(Self { component, tokenizer, config, output, pad_token: pad_token(&directory.join(tokenizer))? })
    }
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
        "\"StableDiffusionXLPipeline\"",
        "\"StableDiffusionXLImg2ImgPipeline\"",
        "\"StableDiffusionXLInpaintPipeline\"",
        "\"StableDiffusionXLPAGPipeline\"",
        "\"StableDiffusionXLControlNetPipeline\"",
        "\"StableDiffusionXLControlNetImg2ImgPipeline\"",
        "\"StableDiffusionXLControlNetInpaintPipeline\"",
        "\"StableDiffusionXLAdapterPipeline\"",
    ],
)];
/// What the names of the pipelines around SDXL begin with.
const XL: &str = "StableDiffusionXL";
const REFINER: &str = "is Stable Diffusion XL's refiner (requires_aesthetics_score), which ends what another model began: it is not supported; \
                       serve the base model, which generates alone";

const UNET: Fixed = &[
    ("act_fn", &["\"silu\""]),
    ("addition_embed_type", &["null", "\"text_time\""]),
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
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\"", "null"]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
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
    /// Reads `model_index.json`, the components' `config.json`, `scheduler/scheduler_config.json` and the pad tokens of the tokenizers
    /// under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub fn read(directory: &Path) -> Result<Self, EngineError> {
        let index: Value = read(&directory.join("model_index.json"), PIPELINE)?;
        let is = |key| index.get(key).and_then(Value::as_bool);
        if is("requires_aesthetics_score") == Some(true) {
            let path = directory.join("model_index.json");
            return Err(EngineError::Checkpoint { path, problem: REFINER.to_owned() });
        }
        let is_xl = index.get("_class_name").and_then(Value::as_str).is_some_and(|class| class.starts_with(XL));
        let checkpoint = Self {
            directory: directory.to_owned(),
            unet: read(&directory.join("unet/config.json"), UNET)?,
            vae: read(&directory.join("vae/config.json"), VAE)?,
            text_encoders: text_encoders(directory, is_xl)?,
            schedule: read(&directory.join("scheduler/scheduler_config.json"), &[])?,
            zeroes_empty_negative: is_xl && is("force_zeros_for_empty_prompt").unwrap_or(true),
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Whether it is Stable Diffusion XL.
    #[must_use]
    pub fn is_xl(&self) -> bool {
        self.text_encoders.len() > 1
    }

    /// Components that hold tensors.
    pub(super) fn components(&self) -> Vec<&'static str> {
        self.text_encoders.iter().map(|encoder| encoder.component).chain(["unet", "vae"]).collect()
    }

    /// Directories that have settings or words in them.
    pub(super) fn directories(&self) -> Vec<&'static str> {
        let tokenizers = self.text_encoders.iter().map(|encoder| encoder.tokenizer);
        self.components().into_iter().chain(tokenizers).chain(["scheduler"]).collect()
    }

    /// The settings from which a job's scheduler is made. SDXL's pipelines correct nothing.
    pub(super) fn schedule_for(&self, pipeline: Pipeline) -> ScheduleConfig {
        if self.is_xl() { self.schedule.clone() } else { self.schedule.corrected_for(pipeline) }
    }

    /// Whether the VAE computes in f32 where the weights are kept in `dtype`: what SDXL's pipelines do with `force_upcast`.
    pub(super) fn upcasts_vae(&self, dtype: DType) -> bool {
        self.is_xl() && self.vae.force_upcast && dtype == DType::F16
    }

    /// The most layers of the text encoders that a job may leave out.
    pub(super) fn max_clip_skip(&self) -> usize {
        let layers = self.text_encoders.iter().map(|encoder| match encoder.output {
            TextOutput::Last | TextOutput::Pooled => encoder.config.num_hidden_layers,
            TextOutput::Penultimate | TextOutput::PenultimateAndPooled => encoder.config.num_hidden_layers.saturating_sub(1),
        });
        layers.min().unwrap_or_default()
    }

    /// What one file must say for the code to make sense, and the files for each other.
    fn check(&self) -> Result<(), EngineError> {
        let Self { unet, vae, schedule, .. } = self;
        let blocks = unet.block_out_channels.len();
        let latents = vae.latent_channels;
        // Every pipeline but SDXL's makes any offset 1.
        let room = MAX_STEPS * (self.schedule_for(Pipeline::TextToImage).steps_offset() + 1);
        let betas = schedule.trained_betas.as_ref().map_or(schedule.num_train_timesteps, Vec::len);
        let wrong = [
            (blocks == 0, "unet", "block_out_channels must not be empty"),
            (unet.down_block_types.len() != blocks, "unet", "down_block_types must be as many as block_out_channels"),
            (unet.up_block_types.len() != blocks, "unet", "up_block_types must be as many as block_out_channels"),
            ((0..blocks).any(|index| unet.heads(index) == 0), "unet", "attention_head_dim must not be 0"),
            (unet.out_channels != latents, "unet", "out_channels must be the VAE's latent_channels"),
            (![latents, 2 * latents, 2 * latents + 1].contains(&unet.in_channels), "unet", IN_CHANNELS),
            (unet.time_cond_proj_dim.is_some_and(|width| width < 4), "unet", "time_cond_proj_dim must be 4 or more"),
            (vae.block_out_channels.is_empty(), "vae", "block_out_channels must not be empty"),
            (schedule.num_train_timesteps < room, "scheduler", "num_train_timesteps has no room for 200 steps"),
            (schedule.num_train_timesteps != betas, "scheduler", "trained_betas must be as many as num_train_timesteps"),
        ];
        let wrong = wrong.into_iter().chain(self.wrong_texts()).find(|(is_wrong, ..)| *is_wrong);
        wrong.map_or(Ok(()), |(_, component, problem)| {
            Err(EngineError::Checkpoint { path: self.directory.join(component), problem: problem.to_owned() })
        })
    }

    /// What may be wrong between text encoders and UNet: whether it is, where, and what is allowed.
    fn wrong_texts(&self) -> Vec<(bool, &'static str, &'static str)> {
        let Self { unet, text_encoders, .. } = self;
        let is_xl = self.is_xl();
        let hidden: usize = text_encoders.iter().map(|encoder| encoder.config.hidden_size).sum();
        let pooled = text_encoders.last().map_or(0, |encoder| encoder.config.projection_dim);
        let waves = unet.addition_time_embed_dim.unwrap_or_default();
        let added = unet.projection_class_embeddings_input_dim;
        let positions = |encoder: &EncoderFiles| encoder.config.max_position_embeddings;
        let differ = text_encoders.windows(2).any(|pair| positions(&pair[0]) != positions(&pair[1]));
        let width = if is_xl { WIDTH_XL } else { WIDTH };
        let mut wrong = vec![
            (
                unet.is_xl() && !is_xl,
                "unet",
                "addition_embed_type is SDXL's, whose model_index.json says StableDiffusionXLPipeline",
            ),
            (is_xl && !unet.is_xl(), "unet", "addition_embed_type must be \"text_time\", for model_index.json says it is SDXL"),
            (unet.cross_attention_dim != hidden, "unet", width),
            (is_xl && (waves == 0 || waves % 2 == 1), "unet", "addition_time_embed_dim must be an even number above 0"),
            (is_xl && added != Some(pooled + SIZES * waves), "unet", ADDED),
            (differ, "text_encoder_2", "max_position_embeddings must be that of text_encoder"),
        ];
        for encoder in text_encoders {
            let heads = encoder.config.num_attention_heads;
            wrong.push((heads == 0, encoder.component, "num_attention_heads must not be 0"));
            wrong.push((positions(encoder) < 3, encoder.component, "max_position_embeddings must be 3 or more"));
        }
        wrong
    }
}

/// Heights and widths that SDXL's UNet is told.
const SIZES: usize = 6;
const WIDTH: &str = "cross_attention_dim must be hidden_size";
const WIDTH_XL: &str = "cross_attention_dim must be the sum of both text encoders' hidden_size";
const ADDED: &str =
    "projection_class_embeddings_input_dim must be text_encoder_2's projection_dim and 6 times addition_time_embed_dim";
const IN_CHANNELS: &str = "in_channels must be the VAE's latent_channels, twice as many for instruct-pix2pix, or twice as many and 1 for inpainting; \
                           other inputs are not supported";

fn text_encoders(directory: &Path, is_xl: bool) -> Result<Vec<EncoderFiles>, EngineError> {
    let first = ("text_encoder", "tokenizer");
    let second = ("text_encoder_2", "tokenizer_2");
    if !is_xl {
        return Ok(vec![EncoderFiles::read(directory, first, TextOutput::Last)?]);
    }
    if let Some(missing) = [first.0, second.0, second.1].into_iter().find(|name| !directory.join(name).is_dir()) {
        let problem = "is missing: Stable Diffusion XL has two text encoders and two tokenizers".into();
        return Err(EngineError::Checkpoint { path: directory.join(missing), problem });
    }
    Ok(vec![
        EncoderFiles::read(directory, first, TextOutput::Penultimate)?,
        EncoderFiles::read(directory, second, TextOutput::PenultimateAndPooled)?,
    ])
}
