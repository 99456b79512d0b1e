//! Textual inversions (Gal et al. 2022, arXiv 2208.01618): words of a prompt that stand for vectors out of a file.

use std::fs;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::finite::is_finite;
use crate::tensor_file::not_safetensors;
use crate::weights::is_float;
use crate::{EmbeddingFile, EngineError};

/// The key under which AUTOMATIC1111 keeps the vectors; diffusers' key is the word itself, and the only one.
const A1111_KEY: &str = "emb_params";

/// The words of one request, and their vectors.
#[derive(Debug, Default)]
pub struct Inversions {
    /// A word, and how many vectors it stands for.
    pub(super) words: Vec<(String, usize)>,
    /// (vectors, hidden), f32: those of the first word, of the second, and so on.
    pub(super) vectors: Option<Tensor>,
}

impl Inversions {
    /// Reads the files, which are untrusted, for a text encoder of width `hidden`.
    ///
    /// # Errors
    /// [`EngineError::Embedding`] says which one is at fault and why.
    pub(super) fn read(files: &[EmbeddingFile], hidden: usize, device: &Device) -> Result<Self, EngineError> {
        let mut words = Vec::new();
        let mut vectors = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let of_word = read(file, hidden, device).map_err(|problem| EngineError::Embedding { index, problem })?;
            words.push((file.token.clone(), of_word.dim(0)?));
            vectors.push(of_word);
        }
        let vectors = if vectors.is_empty() { None } else { Some(Tensor::cat(&vectors, 0)?) };
        Ok(Self { words, vectors })
    }
}

/// (vectors, hidden), f32.
fn read(file: &EmbeddingFile, hidden: usize, device: &Device) -> Result<Tensor, String> {
    let bytes = fs::read(&file.path).map_err(|error| format!("cannot be read: {error}"))?;
    let content = SafeTensors::deserialize(&bytes).map_err(|error| not_safetensors(&bytes, &error))?;
    let (key, view) = vectors(&content)?;
    let shape = view.shape().to_vec();
    let fits = match shape[..] {
        [width] => width == hidden,
        [vectors, width] => vectors > 0 && width == hidden,
        _ => false,
    };
    if !fits || !is_float(view.dtype()) {
        let found = format!("{key} has the shape {shape:?} of {:?}", view.dtype());
        return Err(format!("belongs to another model: {found}, this model's words are vectors of {hidden} floats"));
    }
    let load = || -> candle_core::Result<(Tensor, bool)> {
        let vectors = view.load(device)?.to_dtype(DType::F32)?.reshape(((), hidden))?;
        let finite = is_finite(&vectors)?;
        Ok((vectors, finite))
    };
    match load().map_err(|error| error.to_string())? {
        (vectors, true) => Ok(vectors),
        _ => Err(format!("{key} holds NaN or infinity; train it again")),
    }
}

/// The tensor that is meant, and its key.
fn vectors<'a>(content: &SafeTensors<'a>) -> Result<(String, TensorView<'a>), String> {
    let mut tensors = content.tensors();
    if let Some(place) = tensors.iter().position(|(key, _)| key == A1111_KEY) {
        return Ok(tensors.swap_remove(place));
    }
    match (tensors.pop(), tensors.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err("holds no tensors; is it the right file?".into()),
        (Some((key, _)), more) => Err(format!(
            "holds {} tensors ({key} among them); one is expected, or {A1111_KEY}: is it a textual inversion?",
            more + 1
        )),
    }
}
