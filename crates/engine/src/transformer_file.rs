//! A flow's transformer in one file, under its own names or those of its first release, perhaps next to other models.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use candle_core::{DType, Device};

use super::EngineError;
use super::gguf_file::is_gguf;
use super::gguf_transformer::{self, Found};
use super::original_layers::{OriginalLayers, Places, bare, rows_of};
use super::packed::packed_name;
use super::weights::{Named, Shapes, Tensors, Weights};

/// Reads the weight files of these components under `directory`, but the transformer out of `file`; `expected`: the shapes of all tensors.
///
/// Of a GGUF file, weights of layers stay in their blocks.
///
/// # Errors
/// [`EngineError::Checkpoint`] when a file cannot be read, or `file` holds no transformer of this model. What is missing in it or has another shape
/// is found when the module is built; in a GGUF file before anything is read.
pub(super) fn read_with_transformer(
    directory: &Path,
    components: &[&str],
    (file, expected): (&Path, &Shapes),
    kept: (DType, &Device),
) -> Result<Weights, EngineError> {
    let others: Vec<&str> = components.iter().copied().filter(|component| *component != "transformer").collect();
    let mut tensors: Tensors = Weights::read(directory, &others, kept)?.tensors().clone();
    let original = OriginalLayers::of(expected);
    let places: Places<'_> = expected.keys().map(|name| (name.as_str(), original.places(name))).collect();
    let read = if is_gguf(file) {
        gguf_transformer::read(file, &places, (expected, &original.shapes(expected)), kept)?
    } else {
        read_safetensors(file, &places, kept)?
    };
    for (name, places) in &places {
        let found = places.iter().find_map(|(place, rows)| Some((read.get(place)?, rows)));
        let Some((Found { tensor, blocks }, rows)) = found else { continue };
        // What is too small goes on as it is, and is reported with its shape.
        let rows = rows.filter(|rows| rows.iter().all(|rows| tensor.dim(0).is_ok_and(|all| rows.end <= all)));
        let name = blocks.map_or_else(|| (*name).to_owned(), |format| packed_name(name, format));
        tensors.insert(name, rows.map_or(Ok(tensor.clone()), |rows| rows_of(tensor, rows))?);
    }
    Ok(Weights::from_tensors(tensors, kept))
}

fn read_safetensors(file: &Path, places: &Places<'_>, kept: (DType, &Device)) -> Result<HashMap<String, Found>, EngineError> {
    let wanted: BTreeSet<&str> = places.iter().flat_map(|(_, places)| places).map(|(name, _)| name.as_str()).collect();
    let named = Named::open(file, |name| {
        let bare = bare(name).unwrap_or(name);
        wanted.contains(bare).then(|| bare.to_owned())
    })?;
    if named.is_empty() {
        let problem = "holds no tensor of this family's transformer; is it the right file?".to_owned();
        return Err(EngineError::Checkpoint { path: file.to_owned(), problem });
    }
    let read = Weights::of(&[named], kept)?;
    let tensors = read.tensors().iter();
    Ok(tensors.map(|(name, tensor)| (name.clone(), Found { tensor: tensor.clone(), blocks: None })).collect())
}
