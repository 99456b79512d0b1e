//! A flow's transformer in a GGUF file: whether it is this model's, and its tensors.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use atelier_kernels::gguf::BlockFormat;
use candle_core::{DType, Device, Tensor};
use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};

use super::EngineError;
use super::gguf_file::{Format, GgufFile, GgufTensor, shown, without_leading_ones};
use super::original_layers::{Places, bare};
use super::weights::{Shapes, listed};

/// Z-Image's first release has it, and no code reads it: diffusers drops it too (`convert_z_image_transformer_checkpoint_to_diffusers`).
const UNREAD: &str = "norm_final.weight";
/// What the names of the model's tensors begin with here.
const COMPONENT: &str = "transformer.";
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
    let (found, unread) = sorted(&file, places);
    if found.is_empty() {
        return Err(file.wrong(of_another_model(&file, places)));
    }
    let (wanted, problems) = matched(&found, places, shapes);
    let surplus = found.keys().filter(|name| !wanted.contains_key(**name)).chain(&unread).copied();
    let mut surplus: Vec<&str> = surplus.filter(|name| *name != UNREAD).collect();
    surplus.sort_unstable();
    let surplus = surplus.into_iter().map(|name| format!("{} is none of this model's", shown(name)));
    let problems: Vec<String> = problems.into_iter().chain(surplus).collect();
    if !problems.is_empty() {
        return Err(file.of_another_model(&listed(&problems)));
    }
    let read = wanted.into_par_iter().map(|(name, shape)| Ok((name.to_owned(), loaded(&file, found[name], shape, kept)?)));
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

/// The file's tensors by their bare names: those that the model may have, and what else stands among them.
fn sorted<'a>(file: &'a GgufFile, places: &Places<'_>) -> (HashMap<&'a str, &'a GgufTensor>, Vec<&'a str>) {
    let known: HashSet<&str> = places.iter().flat_map(|(_, places)| places).map(|(name, _)| name.as_str()).collect();
    // Next to other models the transformer's names have a prefix.
    let has_prefix = file.tensors().keys().any(|name| bare(name).is_some_and(|name| known.contains(name)));
    let mut found = HashMap::new();
    let mut unread = Vec::new();
    for (name, tensor) in file.tensors() {
        match if has_prefix { bare(name) } else { Some(name.as_str()) } {
            Some(name) if known.contains(name) => {
                found.insert(name, tensor);
            }
            Some(name) => unread.push(name),
            None => {}
        }
    }
    (found, unread)
}

/// The shape of each name that is to be read, and what does not fit.
fn matched<'a>(
    found: &HashMap<&str, &GgufTensor>,
    places: &'a Places<'_>,
    (expected, joint): (&'a Shapes, &'a Shapes),
) -> (HashMap<&'a str, &'a [usize]>, Vec<String>) {
    let mut wanted = HashMap::new();
    let mut problems = Vec::new();
    let mut ordered: Vec<_> = places.iter().filter(|(_, places)| !places.is_empty()).collect();
    ordered.sort_unstable_by_key(|(name, _)| *name);
    for (name, places) in ordered {
        let Some((place, rows, tensor)) =
            places.iter().find_map(|(place, rows)| Some((place.as_str(), rows, *found.get(place.as_str())?)))
        else {
            problems.push(format!("{name} {:?} is missing", expected[*name]));
            continue;
        };
        let shape = match rows {
            None => expected.get(*name),
            Some(_) => joint.get(&format!("{COMPONENT}{place}")),
        };
        let shape = shape.map(Vec::as_slice).unwrap_or_default();
        if without_leading_ones(&tensor.shape) == without_leading_ones(shape) {
            wanted.insert(place, shape);
        } else if wanted.insert(place, shape).is_none() {
            problems.push(format!("{} has the shape {:?}, config.json says {shape:?}", shown(place), tensor.shape));
        }
    }
    (wanted, problems)
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
