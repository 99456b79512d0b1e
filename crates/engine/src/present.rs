//! Whether a checkpoint has the weight files of its parts, before any of them is loaded.

use std::path::Path;

use super::EngineError;
use super::tensor_file::PACKED;
use super::weights::component_files;

/// # Errors
/// [`EngineError::Checkpoint`] names the first of `components` under `directory` that has no weights, or lacks one of its shards. A packed checkpoint is
/// one file, and has all.
pub fn check(directory: &Path, components: &[&str]) -> Result<(), EngineError> {
    if directory.join(PACKED).is_file() {
        return Ok(());
    }
    for component in components {
        for path in component_files(&directory.join(component))? {
            if !path.is_file() {
                return Err(EngineError::Checkpoint { path, problem: "is missing".into() });
            }
        }
    }
    Ok(())
}
