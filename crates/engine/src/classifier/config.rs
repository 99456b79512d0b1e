//! What a classifier's `config.json` says: what it is, its labels, and the sizes of its vision transformer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
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
