//! Whether a checkpoint is of the family that its manifest says.

use crate::config::manifest::{ControlNet, Family, Manifest};
use atelier_engine::EngineError;
use atelier_engine::flow::engine::FlowEngine;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::qwen::checkpoint::{ImageCheckpoint, Pipeline};
use atelier_engine::sd::checkpoint::Checkpoint;
use atelier_engine::sd::controlnet::files::ControlNetFile;

/// Looks at the JSON files of the checkpoint, not at its weights.
///
/// # Errors
/// [`EngineError::Checkpoint`] when these cannot be read, are not supported, or are another family's.
pub fn check(manifest: &Manifest) -> Result<(), EngineError> {
    let checkpoint = &manifest.checkpoint;
    match manifest.family {
        Family::StableDiffusion1 | Family::StableDiffusionXl => stable_diffusion(manifest),
        Family::QwenImageEdit => ImageCheckpoint::read(checkpoint)?.check_pipeline(Pipeline::Edit),
        Family::QwenImage => ImageCheckpoint::read(checkpoint)?.check_pipeline(Pipeline::Text),
        Family::ZImage => FlowEngine::<ZImage>::check(checkpoint),
        Family::Flux => FlowEngine::<Flux>::check(checkpoint),
    }
}

/// Looks at the ControlNets of a manifest, not at their tensors.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the one that is no ControlNet of the manifest's checkpoint.
pub fn check_controlnets(manifest: &Manifest) -> Result<(), EngineError> {
    if manifest.controlnets.is_empty() {
        return Ok(());
    }
    let checkpoint = Checkpoint::read(&manifest.checkpoint)?;
    manifest.controlnets.iter().try_for_each(|net| controlnet(net).check(&checkpoint))
}

/// As the engine knows it.
pub(super) fn controlnet(net: &ControlNet) -> ControlNetFile {
    ControlNetFile { name: net.name.as_str().to_owned(), path: net.weights.clone() }
}

fn stable_diffusion(manifest: &Manifest) -> Result<(), EngineError> {
    let is_xl = Checkpoint::read(&manifest.checkpoint)?.is_xl();
    let family = if is_xl { Family::StableDiffusionXl } else { Family::StableDiffusion1 };
    if manifest.family == family {
        return Ok(());
    }
    let checkpoint = manifest.checkpoint.display();
    let problem = format!("family is {}, but {checkpoint} is of {}; write that", manifest.family.as_str(), family.as_str());
    Err(EngineError::Checkpoint { path: manifest.file.clone(), problem })
}
