//! A flow's transformer in one file, under its own names or those of its first release, perhaps next to other models.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Device};

use super::EngineError;
use super::original_layers::{OriginalLayers, rows_of};
use super::weights::{Named, Shapes, Tensors, Weights};

/// What its names may begin with (`ComfyUI`, original releases).
const PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", "transformer."];

/// Reads the weight files of these components under `directory`, but the transformer out of `file`; `expected`: the shapes of all tensors.
///
/// # Errors
/// [`EngineError::Checkpoint`] when a file cannot be read, or `file` holds no transformer of this model. What is missing in it or has another shape
/// is found when the module is built.
pub(super) fn read_with_transformer(
    directory: &Path,
    components: &[&str],
    (file, expected): (&Path, &Shapes),
    kept: (DType, &Device),
) -> Result<Weights, EngineError> {
    let others: Vec<&str> = components.iter().copied().filter(|component| *component != "transformer").collect();
    let mut tensors: Tensors = Weights::read(directory, &others, kept)?.tensors().clone();
    let original = OriginalLayers::of(expected);
    let places: Vec<_> = expected.keys().map(|name| (name, original.places(name))).collect();
    let wanted: BTreeSet<&str> = places.iter().flat_map(|(_, places)| places).map(|(name, _)| name.as_str()).collect();
    let named = Named::open(file, |name| {
        let bare = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        wanted.contains(bare).then(|| bare.to_owned())
    })?;
    if named.is_empty() {
        let problem = "holds no tensor of this family's transformer; is it the right file?".to_owned();
        return Err(EngineError::Checkpoint { path: file.to_owned(), problem });
    }
    let read = Weights::of(&[named], kept)?;
    for (name, places) in &places {
        let found = places.iter().find_map(|(place, rows)| Some((read.tensors().get(place)?, rows)));
        let Some((tensor, rows)) = found else { continue };
        // What is too small goes on as it is, and is reported with its shape.
        let rows = rows.filter(|rows| rows.iter().all(|rows| tensor.dim(0).is_ok_and(|all| rows.end <= all)));
        tensors.insert((*name).clone(), rows.map_or(Ok(tensor.clone()), |rows| rows_of(tensor, rows))?);
    }
    Ok(Weights::from_tensors(tensors, kept))
}
