//! What finds clothes in the images of a model's jobs: whether its files are what the manifest says, and what jobs may ask for.

use crate::config::manifest::Manifest;
use crate::job::segmenter::Segmenter;
use atelier_engine::EngineError;
use atelier_engine::segmenter::check;

/// What a handler of this manifest finds, once it is ready. A segmenter that cannot be read finds nothing: its handler never gets ready.
pub(super) fn known(manifest: &Manifest) -> Segmenter {
    let Some(segmenter) = &manifest.segmenter else { return Segmenter::default() };
    Segmenter { classes: check(&segmenter.directory).unwrap_or_default(), licence: segmenter.licence.clone() }
}

/// Looks at its JSON files, not at its weights.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the file that is missing or not supported.
pub fn check_files(manifest: &Manifest) -> Result<(), EngineError> {
    manifest.segmenter.as_ref().map_or(Ok(()), |segmenter| check(&segmenter.directory).map(drop))
}
