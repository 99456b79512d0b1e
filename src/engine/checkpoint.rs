//! Reads the JSON files of a checkpoint in diffusers' layout; the only file of the engine that knows JSON.

pub(super) mod tokenizer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::EngineError;
use super::qwen::config::{AutoencoderConfig, TransformerConfig};
use super::qwen::schedule::FlowConfig;
use super::qwen::text::config::{LanguageConfig, ProcessorConfig, VisionConfig};
use super::schedule::config::ScheduleConfig;
use super::sd::config::{TextEncoderConfig, UnetConfig, VaeConfig};

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

/// Keys whose value stands in our code, with the values (as JSON) it stands for. A key may also be missing.
type Fixed = &'static [(&'static str, &'static [&'static str])];

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

const SCHEDULE: Fixed = &[
    ("algorithm_type", &["\"dpmsolver++\"", "\"sde-dpmsolver++\""]),
    ("disable_corrector", &["[]"]),
    ("interpolation_type", &["\"linear\""]),
    ("predict_x0", &["true"]),
    ("rescale_betas_zero_snr", &["false"]),
    ("sigma_max", &["null"]),
    ("sigma_min", &["null"]),
    ("solver_order", &["1", "2"]),
    ("solver_p", &["null"]),
    // Diffusers builds DPM-Solver++ and UniPC of each other's types as of their own default.
    ("solver_type", &["\"midpoint\"", "\"bh2\""]),
    ("thresholding", &["false"]),
    ("timestep_type", &["\"discrete\""]),
    ("use_beta_sigmas", &["false"]),
    ("use_exponential_sigmas", &["false"]),
    ("use_flow_sigmas", &["false"]),
    ("use_lu_lambdas", &["false"]),
    ("variance_type", &["null", "\"fixed_small\""]),
];

const EDIT_PIPELINE: Fixed = &[("_class_name", &["\"QwenImageEditPlusPipeline\""])];

const EDIT_TRANSFORMER: Fixed = &[
    ("guidance_embeds", &["false"]),
    ("patch_size", &["2"]),
    ("use_additional_t_cond", &["false"]),
    ("use_layer3d_rope", &["false"]),
];

const EDIT_VAE: Fixed = &[("attn_scales", &["[]"]), ("input_channels", &["3"])];

const EDIT_SCHEDULE: Fixed = &[
    ("_class_name", &["\"FlowMatchEulerDiscreteScheduler\""]),
    ("invert_sigmas", &["false"]),
    ("stochastic_sampling", &["false"]),
    ("time_shift_type", &["\"exponential\""]),
    ("use_beta_sigmas", &["false"]),
    ("use_exponential_sigmas", &["false"]),
    ("use_karras_sigmas", &["false"]),
];

const PROCESSOR: Fixed = &[
    ("do_convert_rgb", &["true"]),
    ("do_normalize", &["true"]),
    ("do_rescale", &["true"]),
    ("do_resize", &["true"]),
    ("merge_size", &["2"]),
    ("patch_size", &["14"]),
    ("temporal_patch_size", &["2"]),
];

/// What a Qwen-Image-Edit checkpoint says about what comes after its text encoder.
#[derive(Debug, Clone)]
pub struct EditCheckpoint {
    pub directory: PathBuf,
    pub transformer: TransformerConfig,
    pub vae: AutoencoderConfig,
    pub schedule: FlowConfig,
}

impl EditCheckpoint {
    /// Reads `model_index.json`, `transformer/config.json`, `vae/config.json` and `scheduler/scheduler_config.json` under `directory`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read(directory: &Path) -> Result<Self, EngineError> {
        read::<Value>(&directory.join("model_index.json"), EDIT_PIPELINE)?;
        let checkpoint = Self {
            directory: directory.to_owned(),
            transformer: read(&directory.join("transformer/config.json"), EDIT_TRANSFORMER)?,
            vae: read(&directory.join("vae/config.json"), EDIT_VAE)?,
            schedule: read(&directory.join("scheduler/scheduler_config.json"), EDIT_SCHEDULE)?,
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn check(&self) -> Result<(), EngineError> {
        let Self { transformer, vae, schedule, .. } = self;
        let levels = vae.dim_mult.len();
        let axes = transformer.axes_dims_rope;
        let (head, statistics) = (transformer.attention_head_dim, [vae.latents_mean.len(), vae.latents_std.len()]);
        let no_slope = schedule.max_image_seq_len <= schedule.base_image_seq_len;
        let wrong = [
            (transformer.num_layers == 0 || transformer.width() == 0, "transformer", "its sizes must not be 0"),
            (axes.iter().sum::<usize>() != head, "transformer", "axes_dims_rope must add up to attention_head_dim"),
            (axes.iter().any(|width| width % 2 == 1), "transformer", "axes_dims_rope must be even"),
            (transformer.in_channels != 4 * vae.z_dim, "transformer", "in_channels must be 4 times the VAE's z_dim"),
            (transformer.out_channels != vae.z_dim, "transformer", "out_channels must be the VAE's z_dim"),
            (levels == 0 || vae.base_dim == 0, "vae", "dim_mult must not be empty, nor base_dim 0"),
            (vae.temperal_downsample.len() + 1 != levels, "vae", "temperal_downsample must be one less than dim_mult"),
            (statistics != [vae.z_dim; 2], "vae", "latents_mean and latents_std must be z_dim values each"),
            (no_slope, "scheduler", "max_image_seq_len must be above base_image_seq_len"),
        ];
        match wrong.iter().find(|(is_wrong, ..)| *is_wrong) {
            None => Ok(()),
            Some((_, component, problem)) => {
                Err(EngineError::Checkpoint { path: self.directory.join(component), problem: (*problem).to_owned() })
            }
        }
    }
}

/// What the same checkpoint says about its text encoder.
#[derive(Debug, Clone)]
pub struct TextCheckpoint {
    pub language: LanguageConfig,
    pub vision: VisionConfig,
    pub processor: ProcessorConfig,
}

impl TextCheckpoint {
    /// Reads `text_encoder/config.json` and `processor/preprocessor_config.json` under `directory`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read(directory: &Path) -> Result<Self, EngineError> {
        let path = directory.join("text_encoder/config.json");
        let config: Value = read(&path, &[("model_type", &["\"qwen2_5_vl\""])])?;
        let wrong = |problem: serde_json::Error| EngineError::Checkpoint { path: path.clone(), problem: problem.to_string() };
        // Transformers 4.51 and older keep the text model's values at the top, newer ones in a section of their own.
        let mut language = config.as_object().cloned().unwrap_or_default();
        let section =
            |config: &serde_json::Map<String, Value>, name: &str| config.get(name).and_then(Value::as_object).cloned();
        language.extend(section(&language, "text_config").unwrap_or_default());
        let rope = section(&language, "rope_parameters").or_else(|| section(&language, "rope_scaling"));
        language.extend(rope.unwrap_or_default());
        let vision = config.get("vision_config").cloned().unwrap_or_default();
        let mut processor: serde_json::Map<String, Value> =
            read(&directory.join("processor/preprocessor_config.json"), PROCESSOR)?;
        // Likewise: `size` is the newer spelling.
        let size = section(&processor, "size").unwrap_or_default();
        for (new, old) in [("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")] {
            if let Some(pixels) = size.get(new) {
                processor.insert(old.to_owned(), pixels.clone());
            }
        }
        let checkpoint = Self {
            language: LanguageConfig::deserialize(Value::Object(language)).map_err(wrong)?,
            vision: VisionConfig::deserialize(vision).map_err(wrong)?,
            processor: ProcessorConfig::deserialize(Value::Object(processor)).map_err(wrong)?,
        };
        checkpoint.check().map_err(|problem| EngineError::Checkpoint { path, problem: problem.to_owned() })?;
        Ok(checkpoint)
    }

    fn check(&self) -> Result<(), &'static str> {
        let Self { language, vision, .. } = self;
        let heads = language.num_attention_heads;
        let (turning, tower) = (language.mrope_section.iter().sum::<usize>(), vision.hidden_size);
        let wrong = [
            (heads == 0 || language.hidden_size % heads != 0, "hidden_size must be a multiple of num_attention_heads"),
            (
                language.num_key_value_heads == 0 || heads % language.num_key_value_heads != 0,
                "num_attention_heads must be a multiple of num_key_value_heads",
            ),
            (2 * turning != language.head_width(), "mrope_section must add up to half of a head's width"),
            (
                vision.num_heads == 0 || tower % (4 * vision.num_heads) != 0,
                "vision_config: hidden_size must be a multiple of 4 times num_heads",
            ),
            (vision.out_hidden_size != language.hidden_size, "vision_config: out_hidden_size must be hidden_size"),
            (vision.patch_values() * vision.merged() == 0, "vision_config: its sizes must not be 0"),
        ];
        wrong.iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, problem)| Err(*problem))
    }
}

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
            schedule: read(&directory.join("scheduler/scheduler_config.json"), SCHEDULE)?,
            pad_token: tokenizer::pad_token(&directory.join("tokenizer"))?,
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
        let room = (MAX_STEPS * (schedule.steps_offset + 1)).max(2);
        let betas = schedule.trained_betas.as_ref().map_or(schedule.num_train_timesteps, Vec::len);
        let distilled = schedule.original_inference_steps();
        let wrong = [
            (blocks == 0, "unet", "block_out_channels must not be empty"),
            (unet.down_block_types.len() != blocks, "unet", "down_block_types must be as many as block_out_channels"),
            (unet.up_block_types.len() != blocks, "unet", "up_block_types must be as many as block_out_channels"),
            ((0..blocks).any(|index| unet.heads(index) == 0), "unet", "attention_head_dim must not be 0"),
            (unet.out_channels != latents, "unet", "out_channels must be the VAE's latent_channels"),
            (![latents, 2 * latents + 1].contains(&unet.in_channels), "unet", IN_CHANNELS),
            (unet.time_cond_proj_dim.is_some_and(|width| width < 4), "unet", "time_cond_proj_dim must be 4 or more"),
            (unet.cross_attention_dim != text_encoder.hidden_size, "unet", "cross_attention_dim must be hidden_size"),
            (vae.block_out_channels.is_empty(), "vae", "block_out_channels must not be empty"),
            (heads == 0, "text_encoder", "num_attention_heads must not be 0"),
            (text_encoder.max_position_embeddings < 3, "text_encoder", "max_position_embeddings must be 3 or more"),
            (schedule.num_train_timesteps < room, "scheduler", "num_train_timesteps has no room for 200 steps"),
            (distilled == 0 || distilled > betas, "scheduler", "original_inference_steps must be 1 to num_train_timesteps"),
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

const IN_CHANNELS: &str = "in_channels must be the VAE's latent_channels, or twice as many and 1 for inpainting; other inputs, such as the 8 of \
                           instruct-pix2pix, are not supported";

/// 1 and 1.0 are one number, and a list for all blocks is as good as its elements.
fn is_allowed(found: &Value, allowed: &[&str]) -> bool {
    match found {
        Value::Array(elements) if !elements.is_empty() => elements.iter().all(|element| is_allowed(element, allowed)),
        Value::Number(_) => allowed.iter().any(|allowed| allowed.parse().ok() == found.as_f64()),
        _ => allowed.contains(&found.to_string().as_str()),
    }
}

/// Reads one file and refuses what contradicts `fixed`.
fn read<T: DeserializeOwned>(path: &Path, fixed: Fixed) -> Result<T, EngineError> {
    let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    // Python writes values that JSON does not have; here they only ever mean "no limit".
    let text = text.replace(": -Infinity", ": null").replace(": Infinity", ": null");
    let value: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for (key, allowed) in fixed {
        let found = value.get(key).map_or_else(String::new, Value::to_string);
        if !value.get(key).is_none_or(|found| is_allowed(found, allowed)) {
            return Err(wrong(format!("{key} is {found}; supported: {}", allowed.join(", "))));
        }
    }
    T::deserialize(value).map_err(|error| wrong(error.to_string()))
}

/// The files that an index of shards (`model.safetensors.index.json`) names, each once.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, EngineError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = read(index, &[])?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(files.into_iter().collect())
}

/// The table of tensors at the beginning of a safetensors file.
pub(super) fn tensor_table(header: &[u8]) -> Result<Metadata, SafeTensorError> {
    serde_json::from_slice(header).map_err(SafeTensorError::InvalidHeaderDeserialization)
}

/// The same as text, to be written.
pub(super) fn written_table(table: &Metadata) -> Result<Vec<u8>, SafeTensorError> {
    serde_json::to_vec(table).map_err(SafeTensorError::JsonError)
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
