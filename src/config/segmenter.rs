//! The segmenter of a manifest: a network that finds clothes in the images of a try-on model's jobs.

use std::path::PathBuf;

use serde::Deserialize;

use super::relative::relative;

/// A `SegformerForSemanticSegmentation` in transformers' layout.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segmenter {
    /// With `config.json`, `preprocessor_config.json` and `model.safetensors`, relative to the manifest.
    #[serde(deserialize_with = "relative")]
    pub directory: PathBuf,
    /// Of its weights; it goes into the records of jobs whose mask it made.
    #[serde(default)]
    pub licence: Option<String>,
}

impl Segmenter {
    /// What is read of it.
    pub const FILES: [&str; 3] = ["config.json", "preprocessor_config.json", "model.safetensors"];
}
