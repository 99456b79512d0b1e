//! A flow's transformer in a GGUF file: whether it is this model's, and its tensors.

use std::collections::HashMap;
use std::path::Path;

use atelier_kernels::gguf::BlockFormat;
use candle_core::{DType, Device, Tensor};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::EngineError;
use super::gguf_file::{Format, GgufFile, GgufTensor, shown};
use super::original_layers::Places;
use super::original_layers::fitting::Fitting;
use super::weights::{Shapes, listed};

/// How many names of a file of another model are shown.
const SHOWN: usize = 3;

/// What was read for a name of a file.
pub(super) struct Found {
    /// Values, or blocks: (rows, bytes of a row), u8.
    pub(super) tensor: Tensor,
    pub(super) blocks: Option<BlockFormat>,
}

/// Reads what `file` has at these places; `shapes`: of the model's tensors, and of its layers of the first release. Matrices of layers stay in their
/// blocks, all else becomes whole.
///
/// # Errors
/// [`EngineError::Checkpoint`], before anything is read, when it holds another model: what it is of, and what is missing, has another shape or is not
/// read.
pub(super) fn read(
    file: &Path,
    places: &Places<'_>,
    shapes: (&Shapes, &Shapes),
    kept: (DType, &Device),
) -> Result<HashMap<String, Found>, EngineError> {
    let file = GgufFile::open(file)?;
    let tensors: Vec<(&str, &[usize])> =
        file.tensors().iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice())).collect();
    let Some(Fitting { wanted, problems }) = Fitting::of(&tensors, places, shapes) else {
        return Err(file.wrong(of_another_model(&file, places)));
    };
    if !problems.is_empty() {
        return Err(file.of_another_model(&listed(&problems)));
    }
    let read = wanted.into_par_iter().map(|(place, (name, shape))| {
        let tensor = loaded(&file, &file.tensors()[name], shape, kept)?;
        Ok((place.to_owned(), tensor))
    });
    read.collect()
}

/// A tensor of this shape, whose leading ones the file may leave out.
fn loaded(file: &GgufFile, tensor: &GgufTensor, shape: &[usize], kept: (DType, &Device)) -> Result<Found, EngineError> {
    match (tensor.format, shape) {
        // A vector of as many values as a layer has may have been given blocks as well; what is added or multiplied by is whole.
        (Format::Blocks(format), [rows, _]) if *rows > 1 => {
            Ok(Found { tensor: file.packed(tensor, kept.1)?, blocks: Some(format) })
        }
        _ => Ok(Found { tensor: file.unpacked(tensor, kept)?.reshape(shape)?, blocks: None }),
    }
}

fn of_another_model(file: &GgufFile, places: &Places<'_>) -> String {
    let mut expected: Vec<&str> = places.iter().filter_map(|(_, places)| Some(places.last()?.0.as_str())).collect();
    expected.sort_unstable();
    let names = file.tensors().keys().take(SHOWN).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    let has = if names.is_empty() { "no tensors".to_owned() } else { format!("{names}, …") };
    format!(
        "is GGUF of {}, and holds no tensor of this family's transformer: it has {has}; expected are {}, …",
        file.architecture(),
        expected.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ")
    )
}
