//! What enlarges the images of a model's jobs: whether its files are what the manifest says, and what jobs may ask for.

use crate::config::Config;
use crate::config::manifest::Manifest;
use crate::config::upscaler;
use crate::job::task::upscale::Upscaler;
use crate::job::upscalers::Upscalers;
use atelier_engine::EngineError;
use atelier_engine::upscaler::check;

/// What a handler of this configuration enlarges with, once it is ready.
pub(super) fn known(config: &Config, manifest: &Manifest) -> Upscalers {
    let listed = manifest.upscalers.iter().map(|upscaler::Upscaler { name, factor, licence, .. }| Upscaler {
        name: name.clone(),
        factor: *factor,
        licence: licence.clone(),
    });
    Upscalers { listed: listed.collect(), max_pixels: config.workflow.upscale.max_pixels }
}

/// Looks at the tables of the files, not at their tensors.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the file that is no upscaler, or one of another factor.
pub fn check_files(manifest: &Manifest) -> Result<(), EngineError> {
    manifest.upscalers.iter().try_for_each(|upscaler::Upscaler { name, factor, weights, .. }| {
        let enlarges = check(weights)?;
        if enlarges == factor.get() {
            return Ok(());
        }
        let problem =
            format!("enlarges {enlarges} times, and upscalers says {} of {}; write what it does", factor.get(), name.as_str());
        Err(EngineError::Checkpoint { path: weights.clone(), problem })
    })
}
