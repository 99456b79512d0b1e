//! What a checkpoint's adapters may change, with and without LoRAs: which of the two generates, and for which files it was built.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use candle_nn::VarBuilder;
use sha2::{Digest, Sha256};

use super::device::{fill, is_channels_last, to_channels_last};
use super::finite::is_finite;
use super::graphs::module_number;
use super::learned_word::Bundled;
use super::lora::{Lora, LoraError};
use super::packed::{unpacked, unpacked_name};
use super::recent::Recent;
use super::weights::joint::{is_joint, join_over};
use super::weights::{Shapes, Tensors, Weights};
use super::{AlphaSource, EngineError, LoraFile};

/// SHA-256 of all that decides what an adapter does at scale 1: its file, and where its alpha is from.
type Content = [u8; 32];
/// Content and scale of a LoRA.
type Fingerprint = (Content, u64);

/// What builds the parts that a LoRA may change, over tensors by their names.
type Builder<Adapted> = Box<dyn Fn(&VarBuilder) -> candle_core::Result<Adapted> + Send>;

/// `Adapted`: the parts of a checkpoint that a LoRA may change.
pub(super) struct Adapters<Adapted> {
    weights: Weights,
    builder: Builder<Adapted>,
    base: Adapted,
    base_module: u64,
    /// The last LoRAs used and what was built for them. Only what they change takes memory of its own.
    last: Option<Last<Adapted>>,
    uses_last: bool,
    /// The matrices of the LoRAs used last, on the device: changing between them costs a merge, and no reading or checking.
    read: Recent<Content, Arc<Lora>>,
}

struct Last<Adapted> {
    loras: Vec<Fingerprint>,
    /// The tensors that `adapted` has in place of the base's.
    overlay: Arc<Tensors>,
    module: u64,
    adapted: Adapted,
    learned_words: Vec<Bundled>,
}

/// Of the matrices that stay on the device. A LoRA of rank 32 for all of Stable Diffusion 1.5 has 75 MiB in f32.
const MATRICES_MAX_BYTES: usize = 512 << 20;

impl<Adapted> Adapters<Adapted> {
    /// # Errors
    /// Lists the tensors that are missing or have another shape.
    pub(super) fn new(
        weights: Weights,
        builder: impl Fn(&VarBuilder) -> candle_core::Result<Adapted> + Send + 'static,
    ) -> Result<Self, String> {
        let base = weights.build(&Arc::default(), &builder)?;
        let read = Recent::new(MATRICES_MAX_BYTES, |_, lora: &Arc<Lora>| lora.bytes());
        Ok(Self { weights, builder: Box::new(builder), base, base_module: module_number(), last: None, uses_last: false, read })
    }

    /// What they are laid over.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What generates now.
    pub(super) fn current(&self) -> &Adapted {
        match &self.last {
            Some(last) if self.uses_last => &last.adapted,
            _ => &self.base,
        }
    }

    /// The number of what generates now: it stays while its tensors lie where they are.
    pub(super) fn module(&self) -> u64 {
        self.last.as_ref().filter(|_| self.uses_last).map_or(self.base_module, |last| last.module)
    }

    /// The numbers of all that may generate again without being built.
    pub(super) fn modules(&self) -> [u64; 2] {
        [self.base_module, self.last.as_ref().map_or(self.base_module, |last| last.module)]
    }

    /// The textual inversions that are bundled with the LoRAs in use.
    pub(super) fn learned_words(&self) -> &[Bundled] {
        match &self.last {
            Some(last) if self.uses_last => &last.learned_words,
            _ => &[],
        }
    }

    /// Changes to exactly these LoRAs, in this order. Returns whether they were the last ones too.
    ///
    /// # Errors
    /// [`EngineError::Lora`] says which one is at fault and why; what was used before stays in use.
    pub(super) fn select(&mut self, checkpoint: &Path, loras: &[LoraFile]) -> Result<bool, EngineError> {
        if loras.is_empty() {
            self.uses_last = false;
            return Ok(true);
        }
        let contents = each(loras.iter().map(content))?;
        let fingerprints: Vec<Fingerprint> =
            contents.iter().zip(loras).map(|(content, lora)| (*content, lora.scale.to_bits())).collect();
        let cache_hit = self.last.as_ref().is_some_and(|last| last.loras == fingerprints);
        if !cache_hit {
            // All of them first: a file that is refused leaves nothing in memory, its neighbours neither.
            let shapes = self.weights.shapes();
            each(
                contents
                    .iter()
                    .zip(loras)
                    .map(|(content, lora)| if self.read.peek(content).is_some() { Ok(()) } else { Lora::check(lora, &shapes) }),
            )?;
            let parsed = each(contents.iter().zip(loras).map(|(content, lora)| self.parsed(lora, *content, &shapes)))?;
            let overlay = self.overlay(parsed.iter().zip(loras.iter().map(|lora| lora.scale)))?;
            let learned_words = parsed.iter().enumerate().flat_map(|(index, lora)| bundled(index, lora)).collect();
            // Only what was laid over the same tensors is filled anew: nothing else, and no base tensor, is ever written.
            let filled = self.last.take_if(|last| self.weights.device().is_cuda() && has_places_for(&last.overlay, &overlay));
            let last = if let Some(last) = filled {
                // A GPU that was told to read there goes on doing so.
                overlay.iter().try_for_each(|(name, tensor)| fill(&last.overlay[name], tensor))?;
                Last { loras: fingerprints, learned_words, ..last }
            } else {
                let overlay = Arc::new(overlay);
                let adapted = self.weights.build(&overlay, &self.builder);
                let adapted = adapted.map_err(|problem| EngineError::Checkpoint { path: checkpoint.to_owned(), problem })?;
                Last { loras: fingerprints, overlay, module: module_number(), adapted, learned_words }
            };
            self.last = Some(last);
        }
        self.uses_last = true;
        Ok(cache_hit)
    }

    /// Why the parts whose tensors' names begin with one of `prefixes` gave NaN or infinity, as far as that is known, and what to do.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn why_not_finite(&self, prefixes: &[&str]) -> Result<String, EngineError> {
        let dtype = self.weights.dtype();
        Ok(match (self.lora_at_fault(prefixes)?, self.base_at_fault(prefixes)?) {
            (_, Some(tensor)) if dtype == DType::F32 => {
                format!("its tensor {tensor} holds some: download the model again, or convert it again")
            }
            (_, Some(tensor)) => format!(
                "its tensor {tensor} holds some in {}: set engine.dtype to f32, and if that fails too download the model again",
                dtype.as_str()
            ),
            (Some(fault), None) => format!("{fault}: use a smaller scale, or train it again"),
            (None, None) if self.uses_last => {
                "its tensors are finite, so the job's LoRAs drive it beyond its range: use smaller scales".to_owned()
            }
            (None, None) if dtype == DType::F16 => {
                "its tensors are finite, so f16 overflowed: set engine.dtype to bf16 or f32".to_owned()
            }
            (None, None) => {
                "its tensors are finite, but what they compute is not: is it the right file for this config.json?".to_owned()
            }
        })
    }

    /// The first tensor of the model itself that is not finite, of those whose names begin with one of `prefixes`.
    fn base_at_fault(&self, prefixes: &[&str]) -> candle_core::Result<Option<String>> {
        first_not_finite(self.weights.tensors(), prefixes)
    }

    /// Which of the LoRAs in use makes a tensor of the model not finite, alone, and which tensor; as far as they are kept.
    fn lora_at_fault(&self, prefixes: &[&str]) -> Result<Option<String>, EngineError> {
        let Some(last) = self.last.as_ref().filter(|_| self.uses_last) else { return Ok(None) };
        for (index, (hash, scale)) in last.loras.iter().enumerate() {
            let Some(lora) = self.read.peek(hash) else { continue };
            let scale = f64::from_bits(*scale);
            let overlay = self.overlay([(lora, scale)].into_iter())?;
            if let Some(tensor) = first_not_finite(&overlay, prefixes)? {
                return Ok(Some(format!("lora[{index}] at scale {scale} makes {tensor} so")));
            }
        }
        Ok(None)
    }

    fn parsed(&mut self, lora: &LoraFile, hash: Content, shapes: &Shapes) -> Result<Arc<Lora>, LoraError> {
        let device = self.weights.device();
        self.read.of(hash, || Lora::read(lora, shapes, device).map(Arc::new))
    }

    fn overlay<'a>(&self, loras: impl Iterator<Item = (&'a Arc<Lora>, f64)>) -> Result<Tensors, EngineError> {
        let base = self.weights.tensors();
        let mut overlay = Tensors::new();
        each(loras.map(|(lora, scale)| lora.merge(scale, base, &mut overlay)))?;
        let laid = overlay.into_iter().map(|(name, tensor)| {
            // Rounded once, after the last of them.
            let tensor = tensor.to_dtype(self.weights.dtype())?;
            // As what it takes the place of.
            let is_last = base.get(&name).is_some_and(is_channels_last);
            Ok((name, if is_last { to_channels_last(&tensor)? } else { tensor }))
        });
        let mut overlay = laid.collect::<Result<Tensors, EngineError>>()?;
        join_over(base, &mut overlay)?;
        Ok(overlay)
    }
}

/// Whether an overlay has a tensor for each of the other one, and none besides.
fn has_places_for(overlay: &Tensors, other: &Tensors) -> bool {
    overlay.len() == other.len()
        && other.iter().all(|(name, tensor)| {
            overlay.get(name).is_some_and(|place| {
                let is_in_place = place.is_contiguous() || is_channels_last(place);
                is_in_place && place.shape() == tensor.shape() && place.dtype() == tensor.dtype() && tensor.rank() > 0
            })
        })
}

/// By name, the first of those whose names begin with one of `prefixes`.
pub(super) fn first_not_finite(tensors: &Tensors, prefixes: &[&str]) -> candle_core::Result<Option<String>> {
    let chosen = tensors.keys().filter(|name| !is_joint(name) && prefixes.iter().any(|prefix| name.starts_with(prefix)));
    let mut names: Vec<&String> = chosen.collect();
    names.sort();
    for name in names {
        // Blocks are so where what they stand for is.
        let tensor = match unpacked_name(name) {
            Some((_, format)) => unpacked(&tensors[name], format, DType::F32)?,
            None => tensors[name].clone(),
        };
        if !is_finite(&tensor)? {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

/// All results, or the first error with its LoRA's place.
fn each<T>(results: impl Iterator<Item = Result<T, LoraError>>) -> Result<Vec<T>, EngineError> {
    let placed = results
        .enumerate()
        .map(|(index, result)| result.map_err(|error| EngineError::Lora { index, problem: error.to_string() }));
    placed.collect()
}

fn bundled(index: usize, lora: &Lora) -> impl Iterator<Item = Bundled> {
    lora.learned_words().iter().map(move |(text, vectors)| Bundled {
        lora: index,
        text: text.clone(),
        vectors: vectors.clone(),
    })
}

fn content(lora: &LoraFile) -> Result<Content, LoraError> {
    let unreadable = |error: io::Error| LoraError::File(format!("cannot be read: {error}"));
    let mut hash = Sha256::new();
    add_file(&mut hash, &lora.path).map_err(unreadable)?;
    match &lora.alpha {
        AlphaSource::File => {}
        AlphaSource::Given(alpha) => hash.update(alpha.to_le_bytes()),
        AlphaSource::Config(path) => add_file(&mut hash, path).map_err(unreadable)?,
    }
    Ok(hash.finalize().into())
}

/// The file's own hash, a piece at a time: a file may be as large as the memory there is.
fn add_file(hash: &mut Sha256, path: &Path) -> io::Result<()> {
    const PIECE_BYTES: usize = 256 << 10;
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut of_file = Sha256::new();
    loop {
        match file.read(&mut piece)? {
            0 => break,
            bytes => of_file.update(&piece[..bytes]),
        }
    }
    hash.update(of_file.finalize());
    Ok(())
}
