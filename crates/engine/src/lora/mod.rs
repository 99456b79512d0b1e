//! LoRA files (Hu et al. 2021, arXiv 2106.09685) and their relatives: read, checked, and merged into an overlay over the base tensors.

pub mod alphas;
mod contents;
mod delta;
mod dora;
mod family;
mod keys;
mod parts;

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use self::alphas::Alphas;
use self::contents::Contents;
use self::delta::Delta;
use self::family::explained;
use self::parts::Change;
use super::LoraFile;
use super::packed::{add_low_rank, is_packed};
use super::stored::READ_FORMATS;
use super::tensor_file::TensorFile;
use super::weights::{Shapes, Tensors};

/// What is wrong with a LoRA file.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    #[error("{0}")]
    File(String),
    #[error("lora_adapter_metadata in its header: {0}")]
    Header(String),
    #[error("its adapter_config.json: {0}")]
    Config(String),
    #[error(
        "does not say its alpha: PEFT's save_pretrained keeps it in adapter_config.json, which is not next to the file; put it there, name \
         it as config_url, or give alpha"
    )]
    NoAlpha,
    #[error("says its alpha itself: leave alpha and config_url out")]
    AlphaTwice,
    #[error("{module}: {problem}")]
    Contradiction { module: String, problem: String },
    #[error("has {elements} elements, more than twice those of the model ({model})")]
    TooLarge { elements: usize, model: usize },
    #[error("{key} has no elements: its shape is {shape:?}")]
    NoElements { key: String, shape: Vec<usize> },
    #[error("{key} is kept as {found}; supported are {READ_FORMATS}")]
    Format { key: String, found: String },
    #[error("its bundled embeddings (bundle_emb): {0}")]
    Bundle(String),
    #[error("{key} is not a single finite number")]
    Alpha { key: String },
    #[error("changes one module under two names, {first} and {second}; keep one of them")]
    TwoSpellings { first: String, second: String },
    #[error("{count} of {total} keys are no part of an adapter that is known: {}", first.join(", "))]
    Unknown { first: Vec<String>, count: usize, total: usize },
    #[error("holds no matrices; is it the right file?")]
    Empty,
    #[error("{key} is of {kind}; supported are LoRA, LoCon, LoHa, LoKr, DoRA and whole differences")]
    OtherKind { key: String, kind: &'static str },
    #[error("{count} of {total} keys match nothing in the model: {}; was it trained on another model?", first.join(", "))]
    Unmatched { first: Vec<String>, count: usize, total: usize },
    #[error("is of {found}, this model is of {expected}: {cause}")]
    OtherFamily { found: &'static str, expected: &'static str, cause: Box<LoraError> },
    #[error("{module} has no {missing}; the file is incomplete")]
    Incomplete { module: String, missing: &'static str },
    #[error("{module} has both {first} and {second}; the file is broken")]
    Mixed { module: String, first: &'static str, second: &'static str },
    #[error("belongs to another model: {module} adapts {found}, the model has {expected:?} there")]
    Shape { module: String, found: String, expected: Vec<usize> },
    #[error(
        "{module} would be changed by more than a down and an up matrix, which weights of 8 bits and in GGUF blocks cannot be; use it with whole \
         ones"
    )]
    NotBeside { module: String },
    #[error("{key} holds NaN or infinity; train it again")]
    NotFinite { key: String },
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Reads a `.safetensors` file, which is untrusted and says its alpha itself, and drops what it has read; `shapes` are those of a model's tensors,
/// by names such as `unet.conv_in.weight`. For what only asks whether a model would take a file: the fuzz targets.
///
/// # Errors
/// What is wrong with the file.
pub fn check(path: &Path, shapes: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<(), LoraError> {
    let shapes = shapes.into_iter().collect();
    let lora = LoraFile::new(path.to_owned(), 1.0);
    Lora::check(&lora, &shapes)?;
    Lora::read(&lora, &shapes, &Device::Cpu).map(drop)
}

/// A checked adapter, ready to be merged.
pub(super) struct Lora {
    changes: Vec<Change>,
    /// Words of its textual inversions (`OneTrainer` bundles them) and their vectors for each text encoder: (vectors, hidden), f32.
    learned_words: Vec<(String, Vec<Tensor>)>,
}

impl Lora {
    /// Checks a `.safetensors` file, which is untrusted, for the model whose tensors have `shapes`: all that can be wrong with it is found
    /// before any of its tensors takes memory.
    pub(super) fn check(lora: &LoraFile, shapes: &Shapes) -> Result<(), LoraError> {
        let file = TensorFile::open(&lora.path)?;
        let contents = Contents::sort(&file, shapes).map_err(|error| explained(error, &file, shapes))?;
        let checked = contents.check_all(&Alphas::read(&file, &lora.alpha)?);
        checked.map_err(|error| explained(error, &file, shapes))
    }

    /// Reads a file that was [checked](Self::check).
    pub(super) fn read(lora: &LoraFile, shapes: &Shapes, device: &Device) -> Result<Self, LoraError> {
        let file = TensorFile::open(&lora.path)?;
        let contents = Contents::sort(&file, shapes)?;
        let changes = contents.read(&Alphas::read(&file, &lora.alpha)?, device)?;
        Ok(Self { changes, learned_words: contents.learned_words(device)? })
    }

    /// What its tensors take on the device.
    pub(super) fn bytes(&self) -> usize {
        let words = self.learned_words.iter().flat_map(|(_, vectors)| vectors);
        let words = words.map(|vectors| vectors.elem_count() * vectors.dtype().size_in_bytes());
        self.changes.iter().map(Change::bytes).chain(words).sum()
    }

    /// Its textual inversions.
    pub(super) fn learned_words(&self) -> &[(String, Vec<Tensor>)] {
        &self.learned_words
    }

    /// Changes every tensor it adapts: those in `overlay`, or copies of those in `base`, which become f32. Beside weights in blocks it lays its matrices.
    ///
    /// # Errors
    /// When what it does to a weight in blocks is no product of two matrices.
    pub(super) fn merge(&self, scale: f64, base: &Tensors, overlay: &mut Tensors) -> Result<(), LoraError> {
        for change in &self.changes {
            if is_packed(base, &change.target) {
                add_low_rank(overlay, &change.target, Self::matrices(change, scale)?)?;
                continue;
            }
            let Some(weight) = overlay.get(&change.target).or_else(|| base.get(&change.target)) else { continue };
            let merged = Self::apply(change, &weight.to_dtype(DType::F32)?, scale)?;
            overlay.insert(change.target.clone(), merged);
        }
        Ok(())
    }

    /// The tensor `target`, f32, changed by all that this adapter has for it.
    pub(super) fn changed(&self, target: &str, weight: Tensor, scale: f64) -> Result<Tensor, LoraError> {
        self.of(target).try_fold(weight, |weight, change| Self::apply(change, &weight, scale))
    }

    /// Down (rank, in) and up (out, rank) matrices whose product is added to the weight `target`, alpha and scale in the latter.
    ///
    /// # Errors
    /// When what the adapter does to it is no such product.
    pub(super) fn low_rank(&self, target: &str, scale: f64) -> Result<Vec<(Tensor, Tensor)>, LoraError> {
        self.of(target).map(|change| Self::matrices(change, scale)).collect()
    }

    fn matrices(change: &Change, scale: f64) -> Result<(Tensor, Tensor), LoraError> {
        match (&change.delta, &change.direction) {
            (Delta::LowRank { down, up, mid: None }, None) => {
                Ok((down.flatten_from(1)?, (up.flatten_from(1)? * (scale * change.scaling))?))
            }
            _ => Err(LoraError::NotBeside { module: change.target.trim_end_matches(".weight").to_owned() }),
        }
    }

    fn of(&self, target: &str) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.target == target)
    }

    fn apply(change: &Change, weight: &Tensor, scale: f64) -> Result<Tensor, LoraError> {
        let delta = change.delta.weight(weight.dims())?;
        match &change.direction {
            None => Ok((weight + (delta * (scale * change.scaling))?)?),
            Some(direction) => Ok(direction.merge(weight, &(delta * change.scaling)?, scale)?),
        }
    }
}
