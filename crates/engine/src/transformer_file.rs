//! A flow's transformer in one file, under its own names or those of its first release, perhaps next to other models.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device};

use super::EngineError;
use super::gguf_file::is_gguf;
use super::gguf_transformer::{self, Found};
use super::original_layers::fitting::Fitting;
use super::original_layers::{OriginalLayers, Places, rows_of};
use super::packed::packed_name;
use super::stored::check_scales;
use super::tensor_file::TensorFile;
use super::weights::{Named, Shapes, Tensors, Weights, listed};

/// Reads the weight files of these components under `directory`, but the transformer out of `file`; `expected`: the shapes of all tensors.
///
/// Of a GGUF file, weights of layers stay in their blocks.
///
/// # Errors
/// [`EngineError::Checkpoint`] when a file cannot be read, or `file` holds another transformer than this model's: lists, before anything of it is read, what
/// is missing, has another shape or is of another model.
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
    let joint = original.shapes(expected);
    let read = if is_gguf(file) {
        gguf_transformer::read(file, &places, (expected, &joint), kept)?
    } else {
        read_safetensors(file, &places, (expected, &joint), kept)?
    };
    for (name, places) in &places {
        let found = places.iter().find_map(|(place, rows)| Some((read.get(place)?, rows)));
        let Some((Found { tensor, blocks }, rows)) = found else { continue };
        let name = blocks.map_or_else(|| (*name).to_owned(), |format| packed_name(name, format));
        tensors.insert(name, rows.map_or(Ok(tensor.clone()), |rows| rows_of(tensor, rows))?);
    }
    Ok(Weights::from_tensors(tensors, kept))
}

fn read_safetensors(
    path: &Path,
    places: &Places<'_>,
    shapes: (&Shapes, &Shapes),
    kept: (DType, &Device),
) -> Result<HashMap<String, Found>, EngineError> {
    let wrong = |problem: String| EngineError::Checkpoint { path: path.to_owned(), problem };
    let file = TensorFile::open(path)?;
    check_scales(&file)?;
    let names: Vec<String> = file.tensors().map(|(name, _)| name).collect();
    let tensors: Vec<(&str, &[usize])> =
        names.iter().filter_map(|name| Some((name.as_str(), file.info(name)?.shape.as_slice()))).collect();
    let fitting = Fitting::of(&tensors, places, shapes);
    let Fitting { wanted, problems } =
        fitting.ok_or_else(|| wrong("holds no tensor of this family's transformer; is it the right file?".to_owned()))?;
    if !problems.is_empty() {
        return Err(wrong(format!("is not of this model: {}", listed(&problems))));
    }
    let chosen: HashMap<String, String> =
        wanted.iter().map(|(place, (name, _))| ((*name).to_owned(), (*place).to_owned())).collect();
    let named = Named::of(file, |name| chosen.get(name).cloned())?;
    let read = Weights::of(&[named], kept)?;
    let tensors = read.tensors().iter();
    Ok(tensors.map(|(name, tensor)| (name.clone(), Found { tensor: tensor.clone(), blocks: None })).collect())
}
