//! What a classifier's `config.json` says: what it is, its labels, and the sizes of its vision transformer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::sd::config::{Activation, Sides};
use crate::sd::encoder_layer::LayerConfig;

const VIT: &str = "ViTForImageClassification";
const SAFETY_CHECKER: &str = "StableDiffusionSafetyChecker";
/// What a ViT's code stands for. With several labels at once the scores would not be a softmax.
const VIT_FIXED: Fixed = &[("qkv_bias", &["true"]), ("problem_type", &["null", "\"single_label_classification\""])];

/// What a classifier is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Architecture {
    /// transformers' `ViTForImageClassification`, with its labels.
    Vit(Vec<String>),
    /// diffusers' `StableDiffusionSafetyChecker`, with the width of its embeddings.
    SafetyChecker { projection_dim: usize },
}

impl Architecture {
    /// In the order of its scores.
    pub(super) fn labels(&self) -> Vec<String> {
        match self {
            Self::Vit(labels) => labels.clone(),
            Self::SafetyChecker { .. } => ["unsafe_content", "special_care"].map(str::to_owned).to_vec(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct ClassifierConfig {
    pub(super) architecture: Architecture,
    pub(super) vision: VisionConfig,
}

/// Sizes of a vision transformer.
#[derive(Debug, Clone)]
pub(super) struct VisionConfig {
    pub(super) layer: LayerConfig,
    pub(super) layers: usize,
    /// Height and width of the images in pixels.
    pub(super) image: [usize; 2],
    /// Those of a patch, which divide the image's.
    pub(super) patch: [usize; 2],
}

impl VisionConfig {
    /// How many patches an image has.
    pub(super) fn patches(&self) -> usize {
        (self.image[0] / self.patch[0]) * (self.image[1] / self.patch[1])
    }
}

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(default)]
    architectures: Vec<String>,
}

/// A vision transformer as transformers writes it; what is left out has the default of its class.
#[derive(Debug, Deserialize)]
struct WrittenVision {
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_channels: Option<usize>,
    image_size: Option<Sides>,
    patch_size: Option<Sides>,
    hidden_act: Option<Activation>,
    layer_norm_eps: Option<f64>,
}

/// Where transformers' `ViTConfig` and `CLIPVisionConfig` differ in what they mean by a missing key.
struct Defaults {
    patch_size: usize,
    activation: Activation,
    layer_norm_eps: f64,
}

#[derive(Debug, Deserialize)]
struct WrittenVit {
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    #[serde(flatten)]
    vision: WrittenVision,
}

#[derive(Debug, Deserialize)]
struct WrittenChecker {
    projection_dim: Option<usize>,
    vision_config: WrittenVision,
}

impl ClassifierConfig {
    /// Reads `config.json`, whatever directory it is in.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with what is missing in it or not supported, and what would be.
    pub(super) fn read(path: &Path) -> Result<Self, EngineError> {
        let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
        let Named { architectures } = read(path, &[])?;
        if architectures == [VIT] {
            let written: WrittenVit = read(path, VIT_FIXED)?;
            let defaults = Defaults { patch_size: 16, activation: Activation::Gelu, layer_norm_eps: 1e-12 };
            let vision = written.vision.checked(&defaults).map_err(&wrong)?;
            let labels = labels(written.id2label, written.num_labels).map_err(&wrong)?;
            return Ok(Self { architecture: Architecture::Vit(labels), vision });
        }
        if architectures == [SAFETY_CHECKER] {
            let written: WrittenChecker = read(path, &[])?;
            let defaults = Defaults { patch_size: 32, activation: Activation::QuickGelu, layer_norm_eps: 1e-5 };
            let vision =
                written.vision_config.checked(&defaults).map_err(|problem| wrong(format!("vision_config: {problem}")))?;
            let projection_dim = written.projection_dim.unwrap_or(512);
            return Ok(Self { architecture: Architecture::SafetyChecker { projection_dim }, vision });
        }
        Err(wrong(format!("architectures is {architectures:?}; an image classifier is [\"{VIT}\"] or [\"{SAFETY_CHECKER}\"]")))
    }
}

impl WrittenVision {
    fn checked(self, defaults: &Defaults) -> Result<VisionConfig, String> {
        let image = self.image_size.unwrap_or(Sides::Square(224));
        let patch = self.patch_size.unwrap_or(Sides::Square(defaults.patch_size));
        let layer = LayerConfig {
            hidden_size: self.hidden_size.unwrap_or(768),
            intermediate_size: self.intermediate_size.unwrap_or(3072),
            heads: self.num_attention_heads.unwrap_or(12),
            activation: self.hidden_act.unwrap_or(defaults.activation),
            layer_norm_eps: self.layer_norm_eps.unwrap_or(defaults.layer_norm_eps),
            causal: false,
        };
        let [image, patch] = [image, patch].map(|sides| [sides.height(), sides.width()]);
        let divides = |part: usize, whole: usize| part > 0 && whole > 0 && whole.is_multiple_of(part);
        if !divides(layer.heads, layer.hidden_size) {
            return Err(format!("hidden_size {} must be a multiple of num_attention_heads {}", layer.hidden_size, layer.heads));
        }
        if !divides(patch[0], image[0]) || !divides(patch[1], image[1]) {
            return Err(format!("image_size {image:?} must be a multiple of patch_size {patch:?}"));
        }
        match self.num_channels {
            None | Some(3) => Ok(VisionConfig { layer, layers: self.num_hidden_layers.unwrap_or(12), image, patch }),
            Some(channels) => Err(format!("num_channels is {channels}; images have 3")),
        }
    }
}

/// The labels in the order of the scores. transformers calls them `LABEL_0` and `LABEL_1` where a file names none.
fn labels(named: Option<BTreeMap<String, String>>, count: Option<usize>) -> Result<Vec<String>, String> {
    let labels = match named {
        None => (0..count.unwrap_or(2)).map(|index| format!("LABEL_{index}")).collect(),
        Some(named) => in_order(&named)?,
    };
    if labels.len() < 2 {
        return Err(format!("has {} labels; scores that add up to 1 need 2 or more", labels.len()));
    }
    if let Some(count) = count.filter(|count| *count != labels.len()) {
        return Err(format!("num_labels is {count}, but id2label has {}", labels.len()));
    }
    if labels.iter().collect::<BTreeSet<_>>().len() != labels.len() {
        return Err(format!("id2label has one label twice: {}", labels.join(", ")));
    }
    Ok(labels)
}

fn in_order(named: &BTreeMap<String, String>) -> Result<Vec<String>, String> {
    let labels: Option<Vec<String>> = (0..named.len()).map(|index| named.get(&index.to_string()).cloned()).collect();
    labels.ok_or_else(|| {
        let keys: Vec<&str> = named.keys().map(String::as_str).collect();
        format!("id2label has the keys {}; they must be 0 to {}", keys.join(", "), named.len().saturating_sub(1))
    })
}
