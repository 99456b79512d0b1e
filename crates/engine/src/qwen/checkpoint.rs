//! Reads the JSON files of a Qwen-Image or Qwen-Image-Edit checkpoint in diffusers' layout.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::config::{AutoencoderConfig, TransformerConfig};
use super::text_config::{LanguageConfig, ProcessorConfig, VisionConfig};
use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::schedule::flow::FlowConfig;

const PIPELINE: Fixed = &[("_class_name", &["\"QwenImagePipeline\"", "\"QwenImageEditPlusPipeline\""])];

const EDIT_TRANSFORMER: Fixed = &[
    ("guidance_embeds", &["false"]),
    ("patch_size", &["2"]),
    ("use_additional_t_cond", &["false"]),
    ("use_layer3d_rope", &["false"]),
];

const EDIT_VAE: Fixed = &[("attn_scales", &["[]"]), ("input_channels", &["3"])];

const QWEN3: Fixed = &[
    ("attention_bias", &["false"]),
    ("hidden_act", &["\"silu\""]),
    ("model_type", &["\"qwen3\""]),
    ("rope_scaling", &["null"]),
    ("use_sliding_window", &["false"]),
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

/// Which of diffusers' pipelines a checkpoint is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Pipeline {
    /// Images from text alone.
    #[serde(rename = "QwenImagePipeline")]
    Text,
    /// Images from text and other images.
    #[serde(rename = "QwenImageEditPlusPipeline")]
    Edit,
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    pipeline: Pipeline,
}

/// What a checkpoint says about what comes after its text encoder.
#[derive(Debug, Clone)]
pub struct ImageCheckpoint {
    pub directory: PathBuf,
    pub pipeline: Pipeline,
    pub transformer: TransformerConfig,
    pub vae: AutoencoderConfig,
    pub schedule: FlowConfig,
}

impl ImageCheckpoint {
    /// Reads `model_index.json`, `transformer/config.json`, `vae/config.json` and `scheduler/scheduler_config.json` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub fn read(directory: &Path) -> Result<Self, EngineError> {
        let checkpoint = Self {
            directory: directory.to_owned(),
            pipeline: read::<ModelIndex>(&directory.join("model_index.json"), PIPELINE)?.pipeline,
            transformer: read(&directory.join("transformer/config.json"), EDIT_TRANSFORMER)?,
            vae: read(&directory.join("vae/config.json"), EDIT_VAE)?,
            schedule: FlowConfig::read(directory)?,
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// # Errors
    /// [`EngineError::Checkpoint`] when it is of the other pipeline than a manifest says, with both families.
    pub fn check_pipeline(&self, expected: Pipeline) -> Result<(), EngineError> {
        if self.pipeline == expected {
            return Ok(());
        }
        let family = |pipeline| match pipeline {
            Pipeline::Text => "qwen-image",
            Pipeline::Edit => "qwen-image-edit",
        };
        let problem = format!("is of family {}, and the manifest says {}", family(self.pipeline), family(expected));
        Err(EngineError::Checkpoint { path: self.directory.join("model_index.json"), problem })
    }

    fn check(&self) -> Result<(), EngineError> {
        let Self { transformer, vae, .. } = self;
        let levels = vae.dim_mult.len();
        let axes = transformer.axes_dims_rope;
        let head = transformer.attention_head_dim;
        let statistics = [vae.latents_mean.len(), vae.latents_std.len()];
        let wrong = [
            (transformer.num_layers == 0 || transformer.width() == 0, "transformer", "its sizes must not be 0"),
            (axes.iter().sum::<usize>() != head, "transformer", "axes_dims_rope must add up to attention_head_dim"),
            (axes.iter().any(|width| width % 2 == 1), "transformer", "axes_dims_rope must be even"),
            (transformer.in_channels != 4 * vae.z_dim, "transformer", "in_channels must be 4 times the VAE's z_dim"),
            (transformer.out_channels != vae.z_dim, "transformer", "out_channels must be the VAE's z_dim"),
            (levels == 0 || vae.base_dim == 0, "vae", "dim_mult must not be empty, nor base_dim 0"),
            (vae.temperal_downsample.len() + 1 != levels, "vae", "temperal_downsample must be one less than dim_mult"),
            (statistics != [vae.z_dim; 2], "vae", "latents_mean and latents_std must be z_dim values each"),
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
    /// None of a model that is shown no images.
    pub vision: Option<(VisionConfig, ProcessorConfig)>,
}

impl TextCheckpoint {
    /// Reads `text_encoder/config.json` and, where the model `sees` images, `processor/preprocessor_config.json` under `directory`.
    ///
    /// # Errors
    /// As [`ImageCheckpoint::read`].
    pub fn read(directory: &Path, sees: bool) -> Result<Self, EngineError> {
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
        let vision = if sees {
            let vision = config.get("vision_config").cloned().unwrap_or_default();
            let processor = processor(directory)?;
            Some((VisionConfig::deserialize(vision).map_err(wrong)?, processor))
        } else {
            None
        };
        let checkpoint = Self { language: LanguageConfig::deserialize(Value::Object(language)).map_err(wrong)?, vision };
        checkpoint.check().map_err(|problem| EngineError::Checkpoint { path, problem: problem.to_owned() })?;
        Ok(checkpoint)
    }

    fn check(&self) -> Result<(), &'static str> {
        let Self { language, vision } = self;
        let heads = language.num_attention_heads;
        let turning = language.mrope_section.iter().sum::<usize>();
        let wrong = [
            (heads == 0 || language.hidden_size % heads != 0, "hidden_size must be a multiple of num_attention_heads"),
            (
                language.num_key_value_heads == 0 || heads % language.num_key_value_heads != 0,
                "num_attention_heads must be a multiple of num_key_value_heads",
            ),
            (2 * turning != language.head_width(), "mrope_section must add up to half of a head's width"),
        ];
        let first = wrong.iter().find(|(is_wrong, _)| *is_wrong).map(|(_, problem)| *problem);
        match (first, vision) {
            (Some(problem), _) => Err(problem),
            (None, Some((vision, _))) => check_vision(vision, language),
            (None, None) => Ok(()),
        }
    }
}

fn check_vision(vision: &VisionConfig, language: &LanguageConfig) -> Result<(), &'static str> {
    let tower = vision.hidden_size;
    let wrong = [
        (
            vision.num_heads == 0 || !tower.is_multiple_of(4 * vision.num_heads),
            "vision_config: hidden_size must be a multiple of 4 times num_heads",
        ),
        (vision.out_hidden_size != language.hidden_size, "vision_config: out_hidden_size must be hidden_size"),
        (vision.patch_values() * vision.merged() == 0, "vision_config: its sizes must not be 0"),
    ];
    wrong.iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, problem)| Err(*problem))
}

fn processor(directory: &Path) -> Result<ProcessorConfig, EngineError> {
    let path = directory.join("processor/preprocessor_config.json");
    let mut processor: serde_json::Map<String, Value> = read(&path, PROCESSOR)?;
    // Older releases of transformers keep both at the top, newer ones under `size`.
    let size = processor.get("size").and_then(Value::as_object).cloned().unwrap_or_default();
    for (new, old) in [("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")] {
        if let Some(pixels) = size.get(new) {
            processor.insert(old.to_owned(), pixels.clone());
        }
    }
    let read = ProcessorConfig::deserialize(Value::Object(processor));
    read.map_err(|error| EngineError::Checkpoint { path, problem: error.to_string() })
}

/// What `text_encoder/config.json` of Qwen3 says of its text model: as Qwen2.5's, with norms in place of biases, and a line of positions.
///
/// # Errors
/// As [`ImageCheckpoint::read`].
pub(crate) fn qwen3_language(path: &Path) -> Result<LanguageConfig, EngineError> {
    let mut values: serde_json::Map<String, Value> = read(path, QWEN3)?;
    let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
    // Transformers 5 keeps the base of the frequencies in a section of its own.
    let rope = values.get("rope_parameters").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(kind) = rope.get("rope_type").filter(|kind| **kind != "default") {
        return Err(wrong(format!("rope_type is {kind}; supported: \"default\"")));
    }
    values.extend(rope);
    values.insert("qk_norm".into(), true.into());
    values.insert("mrope_section".into(), [0; 3].as_slice().into());
    let mut config = LanguageConfig::deserialize(Value::Object(values)).map_err(|error| wrong(error.to_string()))?;
    config.mrope_section[0] = config.head_width() / 2;
    let key_heads = config.num_key_value_heads;
    if config.num_hidden_layers < 2 || key_heads == 0 || !config.num_attention_heads.is_multiple_of(key_heads) {
        let problem = "num_hidden_layers must be 2 or more, and num_attention_heads a multiple of num_key_value_heads";
        return Err(wrong(problem.to_owned()));
    }
    Ok(config)
}
