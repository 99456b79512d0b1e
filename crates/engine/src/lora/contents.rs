//! The tensors of an adapter file by the modules they change: sorted by their names, checked by their shapes, then read.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor};

use super::LoraError;
use super::alphas::Alphas;
use super::keys::{Part, Targets, bundled_word, other_kind, split};
use super::parts::{Change, Parts};
use crate::EngineError;
use crate::learned_word::{MAX_VECTORS, check_word};
use crate::stored::is_read;
use crate::tensor_file::TensorFile;
use crate::weights::Shapes;

/// An adapter has no more values than so many models: the largest in use have half as many as one.
const MAX_MODELS: usize = 2;

/// Words of textual inversions that a LoRA may bring.
const MAX_WORDS: usize = 64;

/// The vocabularies of the text encoders that a model may have.
const TABLES: [&str; 2] = [
    "text_encoder.text_model.embeddings.token_embedding.weight",
    "text_encoder_2.text_model.embeddings.token_embedding.weight",
];
/// What a word's vectors for each of them are called.
const BUNDLED_KEYS: [&str; 2] = ["clip_l", "clip_g"];

/// The keys of a file by what they stand for.
pub(super) struct Contents<'a> {
    file: &'a TensorFile,
    targets: Targets,
    /// By the base weight's name.
    modules: BTreeMap<String, Keys>,
    /// Words of bundled textual inversions.
    learned_words: Vec<BundledWord>,
    /// The width of each text encoder of the model.
    hidden: Vec<usize>,
}

/// A word and the keys of its vectors, by the place of the text encoder.
struct BundledWord {
    text: String,
    keys: BTreeMap<usize, String>,
}

struct Keys {
    /// The module's name in the file.
    module: String,
    alpha: Option<f64>,
    by_part: BTreeMap<Part, String>,
}

impl<'a> Contents<'a> {
    /// Sorts the keys; reads nothing but alphas.
    ///
    /// # Errors
    /// Names the keys that cannot be used.
    pub(super) fn sort(file: &'a TensorFile, shapes: &Shapes) -> Result<Self, LoraError> {
        let targets = Targets::new(shapes);
        let hidden = TABLES.iter().filter_map(|table| shapes.get(*table)?.get(1).copied()).collect();
        let mut contents = Self { file, targets, modules: BTreeMap::new(), learned_words: Vec::new(), hidden };
        let mut misfits = Misfits::default();
        let mut elements = 0_usize;
        for (key, _) in file.tensors() {
            elements = elements.saturating_add(contents.check(&key)?);
            match (bundled_word(&key), split(&key)) {
                (Some(Ok((word, encoder))), _) if encoder < contents.hidden.len() => contents.add_word(word, encoder, &key)?,
                (Some(Err(())), _) if key.ends_with("_out") => {
                    return Err(LoraError::Bundle(format!(
                        "{key} is added to the text encoder's output, which is not supported"
                    )));
                }
                (Some(_), _) => misfits.without_module.push(key),
                (None, None) => misfits.unknown.push(key),
                (None, Some((module, part))) => match contents.targets.weight(module).map(str::to_owned) {
                    Some(target) => contents.add(&target, module, part, &key)?,
                    None => misfits.without_module.push(key),
                },
            }
        }
        misfits.refuse(file.tensors().count())?;
        if contents.modules.is_empty() {
            return Err(LoraError::Empty);
        }
        contents.check_joint()?;
        let model = contents.targets.elements();
        if elements / MAX_MODELS > model {
            return Err(LoraError::TooLarge { elements, model });
        }
        Ok(contents)
    }

    /// A layer that is adapted as a whole is not adapted in part as well.
    fn check_joint(&self) -> Result<(), LoraError> {
        for (target, keys) in &self.modules {
            let slices = self.targets.slices(target).map(|(slices, _)| slices).unwrap_or_default();
            let twice = slices.iter().find_map(|slice| self.modules.get(&format!("{}.weight", slice.module)));
            if let Some(twice) = twice {
                return Err(LoraError::TwoSpellings { first: keys.module.clone(), second: twice.module.clone() });
            }
        }
        Ok(())
    }

    /// How many elements a tensor has that may be part of an adapter.
    fn check(&self, key: &str) -> Result<usize, LoraError> {
        let Some(stored) = self.file.stored(key) else { return Ok(0) };
        if let Some(kind) = other_kind(key, &stored.info.shape) {
            return Err(LoraError::OtherKind { key: key.to_owned(), kind });
        }
        match stored.count() {
            0 => Err(LoraError::NoElements { key: key.to_owned(), shape: stored.info.shape.clone() }),
            count => Ok(count),
        }
    }

    fn add_word(&mut self, word: &str, encoder: usize, key: &str) -> Result<(), LoraError> {
        let place = self.learned_words.iter().position(|known| known.text == word).unwrap_or_else(|| {
            self.learned_words.push(BundledWord { text: word.to_owned(), keys: BTreeMap::new() });
            self.learned_words.len() - 1
        });
        match self.learned_words[place].keys.insert(encoder, key.to_owned()) {
            None => Ok(()),
            Some(first) => Err(LoraError::TwoSpellings { first, second: key.to_owned() }),
        }
    }

    fn add(&mut self, target: &str, module: &str, part: Part, key: &str) -> Result<(), LoraError> {
        let new = Keys { module: module.to_owned(), alpha: None, by_part: BTreeMap::new() };
        let keys = self.modules.entry(target.to_owned()).or_insert(new);
        if keys.module != module {
            return Err(LoraError::TwoSpellings { first: keys.module.clone(), second: module.to_owned() });
        }
        let Some(stored) = self.file.stored(key) else { return Ok(()) };
        if part == Part::Alpha {
            let alpha = stored.scalar()?.filter(|alpha| alpha.is_finite());
            keys.alpha = Some(alpha.ok_or_else(|| LoraError::Alpha { key: key.to_owned() })?);
        } else if !is_read(stored.info.dtype) {
            return Err(LoraError::Format { key: key.to_owned(), found: format!("{:?}", stored.info.dtype) });
        }
        match keys.by_part.insert(part, key.to_owned()) {
            None => Ok(()),
            Some(first) => Err(LoraError::TwoSpellings { first, second: key.to_owned() }),
        }
    }

    /// Checks everything that can be checked without memory: shapes, ranks, alphas, and that all values are finite.
    ///
    /// # Errors
    /// Says which module does not fit, or which tensor holds NaN or infinity.
    pub(super) fn check_all(&self, alphas: &Alphas) -> Result<(), LoraError> {
        self.check_words()?;
        let keys = self.modules.values().flat_map(|keys| &keys.by_part).filter(|(part, _)| **part != Part::Alpha);
        for key in keys.map(|(_, key)| key).chain(self.learned_words.iter().flat_map(|word| word.keys.values())) {
            if let Some(stored) = self.file.stored(key)
                && !stored.is_finite()?
            {
                return Err(LoraError::NotFinite { key: key.clone() });
            }
        }
        // One zero, seen as a tensor of any shape.
        let zero = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        self.changes(alphas, |key| {
            let shape = self.file.info(key).map(|info| info.shape.clone()).unwrap_or_default();
            Ok(zero.broadcast_as(shape)?)
        })?;
        Ok(())
    }

    /// The changes of all modules, with the tensors in f32 on the device.
    ///
    /// # Errors
    /// When they cannot be read, or there is no memory.
    pub(super) fn read(&self, alphas: &Alphas, device: &Device) -> Result<Vec<Change>, LoraError> {
        self.changes(alphas, |key| self.tensor(key, device))
    }

    /// The bundled textual inversions: a word, and its vectors (vectors, hidden), f32, for each text encoder.
    ///
    /// # Errors
    /// When the vectors cannot be read.
    pub(super) fn learned_words(&self, device: &Device) -> Result<Vec<(String, Vec<Tensor>)>, LoraError> {
        let read = self.learned_words.iter().map(|word| {
            let vectors = word.keys.values().map(|key| {
                let vectors = self.tensor(key, device)?;
                let hidden = vectors.dim(D::Minus1)?;
                Ok(vectors.reshape(((), hidden))?)
            });
            Ok((word.text.clone(), vectors.collect::<Result<_, LoraError>>()?))
        });
        read.collect()
    }

    /// Checks words, shapes and formats of the bundled textual inversions.
    fn check_words(&self) -> Result<(), LoraError> {
        if self.learned_words.len() > MAX_WORDS {
            return Err(LoraError::Bundle(format!("has {} words; at most {MAX_WORDS} are allowed", self.learned_words.len())));
        }
        for word in &self.learned_words {
            check_word(&word.text).map_err(LoraError::Bundle)?;
            for (encoder, hidden) in self.hidden.iter().enumerate() {
                let Some(key) = word.keys.get(&encoder) else {
                    let text = &word.text;
                    let missing = BUNDLED_KEYS[encoder];
                    return Err(LoraError::Bundle(format!(
                        "{text:?} has no {missing}, the vectors of one of the model's text encoders"
                    )));
                };
                self.check_vectors(key, *hidden)?;
            }
        }
        Ok(())
    }

    fn check_vectors(&self, key: &str, hidden: usize) -> Result<(), LoraError> {
        let Some(info) = self.file.info(key) else { return Ok(()) };
        let vectors = match info.shape[..] {
            [width] if width == hidden => 1,
            [vectors, width] if width == hidden => vectors,
            _ => {
                let found = format!("vectors of {:?}", info.shape);
                return Err(LoraError::Shape { module: key.to_owned(), found, expected: vec![hidden] });
            }
        };
        if vectors > MAX_VECTORS {
            return Err(LoraError::Bundle(format!("{key} has {vectors} vectors; at most {MAX_VECTORS} are allowed")));
        }
        if !is_read(info.dtype) {
            return Err(LoraError::Format { key: key.to_owned(), found: format!("{:?}", info.dtype) });
        }
        Ok(())
    }

    fn changes(&self, alphas: &Alphas, tensor: impl Fn(&str) -> Result<Tensor, LoraError>) -> Result<Vec<Change>, LoraError> {
        let mut changes = Vec::with_capacity(self.modules.len());
        for (target, keys) in &self.modules {
            let tensors =
                keys.by_part.iter().filter(|(part, _)| **part != Part::Alpha).map(|(part, key)| Ok((*part, tensor(key)?)));
            let parts = Parts::new(&keys.module, keys.alpha, tensors.collect::<Result<_, LoraError>>()?);
            for change in parts.changes(target, self.targets.shapes(), alphas)? {
                let target = change.target.clone();
                match self.targets.slices(&target) {
                    None => changes.push(change),
                    Some(joint) => changes.extend(change.in_slices(&keys.module, joint, self.targets.shapes())?),
                }
            }
        }
        Ok(changes)
    }

    fn tensor(&self, key: &str, device: &Device) -> Result<Tensor, LoraError> {
        let stored = self.file.stored(key).ok_or_else(|| candle_core::Error::msg(format!("{key} is missing")))?;
        Ok(stored.read(DType::F32)?.to_device(device)?)
    }
}

/// Keys that cannot be used.
#[derive(Default)]
struct Misfits {
    /// They name a part of an adapter, and a module that the model has not.
    without_module: Vec<String>,
    /// They name no part of an adapter.
    unknown: Vec<String>,
}

impl Misfits {
    fn refuse(mut self, total: usize) -> Result<(), LoraError> {
        const SHOWN: usize = 3;
        let first = |keys: &mut Vec<String>| {
            keys.sort();
            keys.iter().take(SHOWN).cloned().collect()
        };
        if !self.without_module.is_empty() {
            let count = self.without_module.len() + self.unknown.len();
            return Err(LoraError::Unmatched { first: first(&mut self.without_module), count, total });
        }
        if !self.unknown.is_empty() {
            return Err(LoraError::Unknown { count: self.unknown.len(), first: first(&mut self.unknown), total });
        }
        Ok(())
    }
}

impl From<EngineError> for LoraError {
    /// What is wrong with the file, without its path: callers know their file by its place in the job.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Checkpoint { problem, .. } => Self::File(problem),
            EngineError::Candle(error) => Self::Candle(error),
            other => Self::File(other.to_string()),
        }
    }
}
