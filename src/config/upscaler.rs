//! Upscalers of a manifest: networks that enlarge what its model has generated.

use std::path::PathBuf;

use serde::Deserialize;

use super::relative::relative;
use crate::job::task::ModelName;
use crate::job::task::upscale::UpscaleFactor;

/// A network of the ESRGAN family, in one file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upscaler {
    /// By which jobs ask for it.
    pub name: ModelName,
    pub factor: UpscaleFactor,
    /// A `.safetensors` file, relative to the manifest.
    #[serde(deserialize_with = "relative")]
    pub weights: PathBuf,
    /// Of its weights; it goes into the records of images that were enlarged with it.
    #[serde(default)]
    pub licence: Option<String>,
}

/// # Errors
/// Names the one that is wrong, and says how.
pub(super) fn check_upscalers(upscalers: &[Upscaler]) -> Result<(), String> {
    for (index, Upscaler { name, licence, .. }) in upscalers.iter().enumerate() {
        if upscalers[..index].iter().any(|other| other.name == *name) {
            return Err(format!("has two of the name {}; a job could not say which", name.as_str()));
        }
        if licence.as_ref().is_some_and(|licence| licence.trim().is_empty()) {
            return Err(format!("{}: licence must name the licence of the weights, or be left out", name.as_str()));
        }
    }
    Ok(())
}
