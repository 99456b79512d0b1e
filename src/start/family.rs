//! Whether a checkpoint is of the family that its manifest says.

use crate::config::manifest::{Family, Manifest};
use crate::config::nets::{ControlNet, IpAdapter};
use crate::job::task::tryon::Mode;
use atelier_engine::flow::engine::FlowEngine;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::flux2::Flux2;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::qwen::checkpoint::{ImageCheckpoint, Pipeline};
use atelier_engine::sd::checkpoint::Checkpoint;
use atelier_engine::sd::controlnet::files::ControlNetFile;
use atelier_engine::sd::ip_adapter::files::IpAdapterFile;
use atelier_engine::{EngineError, present};

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
        Family::Flux2 => FlowEngine::<Flux2>::check(checkpoint),
    }
}

/// Where a checkpoint of a flow has its large text encoder, for which a manifest can name another file.
#[must_use]
pub fn large_encoder(family: Family) -> &'static str {
    if family == Family::Flux { "text_encoder_2" } else { "text_encoder" }
}

/// Whether there are weight files of each part that is loaded, where `modes` are.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the part that has none.
pub fn check_weights(manifest: &Manifest, modes: &[Mode]) -> Result<(), EngineError> {
    let mut components = match manifest.family {
        Family::StableDiffusion1 => vec!["unet", "vae", "text_encoder"],
        Family::StableDiffusionXl => vec!["unet", "vae", "text_encoder", "text_encoder_2"],
        Family::QwenImageEdit | Family::QwenImage | Family::ZImage | Family::Flux2 => {
            vec!["transformer", "vae", "text_encoder"]
        }
        Family::Flux => vec!["transformer", "vae", "text_encoder", "text_encoder_2"],
    };
    let replaces_all = matches!(manifest.family, Family::StableDiffusion1 | Family::StableDiffusionXl);
    if manifest.weights.is_some() {
        components.retain(|component| !replaces_all && *component != "transformer");
    }
    if manifest.text_encoder.is_some() {
        components.retain(|component| *component != large_encoder(manifest.family));
    }
    let mut of_modes = modes.iter().map(|mode| manifest.modes.of(*mode).and_then(|weights| weights.transformer.as_ref()));
    if !modes.is_empty() && of_modes.all(|transformer| transformer.is_some()) {
        components.retain(|component| *component != "transformer");
    }
    present::check(&manifest.checkpoint, &components)
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

/// Looks at the IP-Adapters of a manifest and their image encoders, not at their tensors.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the one that is no IP-Adapter of the manifest's checkpoint.
pub fn check_ip_adapters(manifest: &Manifest) -> Result<(), EngineError> {
    if manifest.ip_adapters.is_empty() {
        return Ok(());
    }
    let checkpoint = Checkpoint::read(&manifest.checkpoint)?;
    manifest.ip_adapters.iter().try_for_each(|adapter| ip_adapter(adapter).check(&checkpoint))
}

/// As the engine knows it.
pub(super) fn ip_adapter(IpAdapter { name, weights, image_encoder }: &IpAdapter) -> IpAdapterFile {
    IpAdapterFile { name: name.as_str().to_owned(), path: weights.clone(), image_encoder: image_encoder.clone() }
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
