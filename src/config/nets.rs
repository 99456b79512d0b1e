//! Nets of a manifest that steer what a Stable Diffusion model generates: its ControlNets and IP-Adapters.

use std::path::PathBuf;

use serde::Deserialize;

use super::relative::relative;
use crate::job::task::control::NetName;

/// A ControlNet of the checkpoint's family, in a directory of diffusers' or in one file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlNet {
    /// By which jobs ask for it.
    pub name: NetName,
    /// A directory with `config.json` and weights, or one `.safetensors` file, relative to the manifest.
    #[serde(deserialize_with = "relative")]
    pub weights: PathBuf,
    /// What kind of image it looks at, such as `canny` or `depth`; of those of the kind `canny` a job may have edges detected.
    pub image: NetName,
}

impl ControlNet {
    /// What is read of one in a directory, unless its source names others.
    const FILES: [&str; 2] = ["config.json", "diffusion_pytorch_model.safetensors"];

    /// Its files, as far as the name of one in a directory is known.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let is_file = self.weights.extension().is_some_and(|extension| extension == "safetensors");
        if is_file { vec![self.weights.clone()] } else { Self::FILES.map(|file| self.weights.join(file)).to_vec() }
    }
}

/// An IP-Adapter of the checkpoint's family.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpAdapter {
    /// By which jobs ask for it.
    pub name: NetName,
    /// One `.safetensors` file, relative to the manifest.
    #[serde(deserialize_with = "relative")]
    pub weights: PathBuf,
    /// The directory of the image encoder that it was trained with, relative to the manifest; several may have the same, which is loaded once.
    #[serde(deserialize_with = "relative")]
    pub image_encoder: PathBuf,
}

impl IpAdapter {
    /// What is read of an image encoder, unless its source names others.
    const ENCODER: [&str; 2] = ["config.json", "model.safetensors"];

    /// The files of its image encoder, as far as their names are known.
    #[must_use]
    pub fn encoder_files(&self) -> Vec<PathBuf> {
        Self::ENCODER.map(|file| self.image_encoder.join(file)).to_vec()
    }
}
