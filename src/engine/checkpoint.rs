//! Reads the JSON files of a checkpoint in diffusers' layout; the only file of the engine that knows JSON.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::EngineError;
use super::schedule::config::ScheduleConfig;
use super::sd::config::{TextEncoderConfig, UnetConfig, VaeConfig};

/// The most steps a request may ask for; the training schedule must have room for them.
const MAX_STEPS: usize = 200;

/// What a checkpoint says about itself.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub folder: PathBuf,
    pub unet: UnetConfig,
    pub vae: VaeConfig,
    pub text_encoder: TextEncoderConfig,
    pub schedule: ScheduleConfig,
    /// What short prompts are filled up with.
    pub pad_token: String,
}

/// Keys whose value stands in our code, with the values (as JSON) it stands for. A key may also be missing.
type Fixed = &'static [(&'static str, &'static [&'static str])];

const PIPELINE: Fixed = &[("_class_name", &["\"StableDiffusionPipeline\""])];

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
    ("mid_block_scale_factor", &["1", "1.0"]),
    ("mid_block_type", &["\"UNetMidBlock2DCrossAttn\""]),
    ("num_class_embeds", &["null"]),
    ("only_cross_attention", &["false"]),
    ("resnet_out_scale_factor", &["1", "1.0"]),
    ("resnet_skip_time_act", &["false"]),
    ("resnet_time_scale_shift", &["\"default\""]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_cond_proj_dim", &["null"]),
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

const SCHEDULE: Fixed = &[
    ("algorithm_type", &["\"dpmsolver++\""]),
    ("interpolation_type", &["\"linear\""]),
    ("rescale_betas_zero_snr", &["false"]),
    ("sigma_max", &["null"]),
    ("sigma_min", &["null"]),
    ("solver_order", &["1", "2"]),
    ("solver_type", &["\"midpoint\""]),
    ("thresholding", &["false"]),
    ("timestep_type", &["\"discrete\""]),
    ("use_beta_sigmas", &["false"]),
    ("use_exponential_sigmas", &["false"]),
    ("use_flow_sigmas", &["false"]),
    ("use_lu_lambdas", &["false"]),
    ("variance_type", &["null", "\"fixed_small\""]),
];

impl Checkpoint {
    /// Reads `model_index.json`, the components' `config.json`, `scheduler/scheduler_config.json` and
    /// `tokenizer/tokenizer_config.json` under `folder`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub fn read(folder: &Path) -> Result<Self, EngineError> {
        read::<Value>(&folder.join("model_index.json"), PIPELINE)?;
        let tokenizer: TokenizerConfig = read(&folder.join("tokenizer/tokenizer_config.json"), &[])?;
        let checkpoint = Self {
            folder: folder.to_owned(),
            unet: read(&folder.join("unet/config.json"), UNET)?,
            vae: read(&folder.join("vae/config.json"), VAE)?,
            text_encoder: read(&folder.join("text_encoder/config.json"), &[])?,
            schedule: read(&folder.join("scheduler/scheduler_config.json"), SCHEDULE)?,
            pad_token: tokenizer.pad_token.text(),
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// What one file must say for the code to make sense, and the files for each other.
    fn check(&self) -> Result<(), EngineError> {
        let Self { unet, vae, text_encoder, schedule, .. } = self;
        let blocks = unet.block_out_channels.len();
        let heads = text_encoder.num_attention_heads;
        let room = (MAX_STEPS * (schedule.steps_offset + 1)).max(2);
        let betas = schedule.trained_betas.as_ref().map_or(schedule.num_train_timesteps, Vec::len);
        let wrong = [
            (blocks == 0, "unet", "block_out_channels must not be empty"),
            (unet.down_block_types.len() != blocks, "unet", "down_block_types must be as many as block_out_channels"),
            (unet.up_block_types.len() != blocks, "unet", "up_block_types must be as many as block_out_channels"),
            ((0..blocks).any(|index| unet.heads(index) == 0), "unet", "attention_head_dim must not be 0"),
            (unet.in_channels != unet.out_channels, "unet", "in_channels and out_channels must be equal"),
            (unet.in_channels != vae.latent_channels, "unet", "in_channels must be the VAE's latent_channels"),
            (unet.cross_attention_dim != text_encoder.hidden_size, "unet", "cross_attention_dim must be hidden_size"),
            (vae.block_out_channels.is_empty(), "vae", "block_out_channels must not be empty"),
            (heads == 0, "text_encoder", "num_attention_heads must not be 0"),
            (text_encoder.max_position_embeddings < 2, "text_encoder", "max_position_embeddings must be 2 or more"),
            (schedule.num_train_timesteps < room, "scheduler", "num_train_timesteps has no room for 200 steps"),
            (schedule.num_train_timesteps != betas, "scheduler", "trained_betas must be as many as num_train_timesteps"),
        ];
        match wrong.iter().find(|(is_wrong, ..)| *is_wrong) {
            None => Ok(()),
            Some((_, component, problem)) => {
                Err(EngineError::Checkpoint { path: self.folder.join(component), problem: (*problem).to_owned() })
            }
        }
    }
}

#[derive(Deserialize)]
struct TokenizerConfig {
    pad_token: SpecialToken,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Added { content: String },
}

impl SpecialToken {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

/// Reads one file and refuses what contradicts `fixed`.
fn read<T: DeserializeOwned>(path: &Path, fixed: Fixed) -> Result<T, EngineError> {
    let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    // Python writes numbers that JSON does not have; here they only ever mean "no limit".
    let text = text.replace(": -Infinity", ": null").replace(": Infinity", ": null");
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for (key, allowed) in fixed {
        let found = value.get(key).map_or(allowed[0].to_owned(), Value::to_string);
        if !allowed.contains(&found.as_str()) {
            return Err(wrong(format!("{key} is {found}; supported: {}", allowed.join(", "))));
        }
    }
    T::deserialize(value).map_err(|error| wrong(error.to_string()))
}

/// A component's part of the PEFT configuration that diffusers writes into the header of a LoRA file.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct AdapterConfig {
    pub(super) lora_alpha: Option<f64>,
    /// Modules (by name, or the end of it) whose alpha differs.
    #[serde(default)]
    pub(super) alpha_pattern: HashMap<String, f64>,
    #[serde(default)]
    pub(super) use_rslora: bool,
}

/// `metadata`: a JSON object with keys like `unet.lora_alpha`. Returns it by component; nothing when it is not one.
pub(super) fn adapter_configs(metadata: &str) -> HashMap<String, AdapterConfig> {
    let mut components: HashMap<String, serde_json::Map<String, Value>> = HashMap::new();
    if let Ok(Value::Object(entries)) = serde_json::from_str(metadata) {
        for (name, value) in entries {
            if let Some((component, key)) = name.split_once('.') {
                components.entry(component.to_owned()).or_default().insert(key.to_owned(), value);
            }
        }
    }
    let parsed = |config| serde_json::from_value(Value::Object(config)).unwrap_or_default();
    components.into_iter().map(|(component, config)| (component, parsed(config))).collect()
}
