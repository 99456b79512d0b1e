//! What a classifier's `config.json` says: what it is, its labels, and the sizes of its vision transformer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::labels::labels;
use crate::sd::vision::config::{Defaults, VisionConfig, WrittenVision};

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

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(default)]
    architectures: Vec<String>,
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
            let vision = written.vision.checked(&Defaults::VIT).map_err(&wrong)?;
            let labels = labels(written.id2label, written.num_labels).map_err(&wrong)?;
            return Ok(Self { architecture: Architecture::Vit(labels), vision });
        }
        if architectures == [SAFETY_CHECKER] {
            let written: WrittenChecker = read(path, &[])?;
            let vision = written.vision_config.checked(&Defaults::CLIP);
            let vision = vision.map_err(|problem| wrong(format!("vision_config: {problem}")))?;
            let projection_dim = written.projection_dim.unwrap_or(512);
            return Ok(Self { architecture: Architecture::SafetyChecker { projection_dim }, vision });
        }
        Err(wrong(format!("architectures is {architectures:?}; an image classifier is [\"{VIT}\"] or [\"{SAFETY_CHECKER}\"]")))
    }
}
