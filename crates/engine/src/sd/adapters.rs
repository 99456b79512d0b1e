//! Text encoder and UNet, with and without LoRAs: which of the two generates, and for which files it was built.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::clip::TextEncoder;
use super::unet::Unet;
use crate::finite::is_finite;
use crate::lora::{Lora, LoraError};
use crate::weights::{Tensors, Weights};
use crate::{EngineError, LoraFile};

/// The parts of a checkpoint that a LoRA may change.
pub(super) struct Adapted {
    pub(super) text_encoder: TextEncoder,
    pub(super) unet: Unet,
}

/// Content hash and scale of a LoRA.
type Fingerprint = ([u8; 32], u64);

pub(super) struct Adapters {
    weights: Weights,
    base: Adapted,
    /// The last LoRAs used and what was built for them. Only what they change takes memory of its own.
    last: Option<(Vec<Fingerprint>, Adapted)>,
    uses_last: bool,
    read: Shelf,
}

/// The matrices of the LoRAs used last, on the device: changing between them costs a merge, and no reading or checking.
#[derive(Default)]
struct Shelf {
    /// By content hash, the last used at the end.
    loras: VecDeque<([u8; 32], Arc<Lora>)>,
}

impl Shelf {
    /// A LoRA of rank 32 for all of Stable Diffusion 1.5 has 75 MiB in f32.
    const MAX_BYTES: usize = 512 << 20;

    fn take(&mut self, hash: &[u8; 32]) -> Option<Arc<Lora>> {
        let place = self.loras.iter().position(|(known, _)| known == hash)?;
        let (hash, lora) = self.loras.remove(place)?;
        self.loras.push_back((hash, Arc::clone(&lora)));
        Some(lora)
    }

    fn put(&mut self, hash: [u8; 32], lora: Arc<Lora>) {
        self.loras.push_back((hash, lora));
        let bytes = |shelf: &Self| shelf.loras.iter().map(|(_, lora)| lora.bytes()).sum::<usize>();
        while bytes(self) > Self::MAX_BYTES {
            self.loras.pop_front();
        }
    }
}

impl Adapters {
    pub(super) fn new(checkpoint: &Checkpoint, weights: Weights) -> Result<Self, String> {
        let base = build(checkpoint, &weights, &Arc::default())?;
        Ok(Self { weights, base, last: None, uses_last: false, read: Shelf::default() })
    }

    /// What they are laid over.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// What generates now.
    pub(super) fn current(&self) -> &Adapted {
        match &self.last {
            Some((_, adapted)) if self.uses_last => adapted,
            _ => &self.base,
        }
    }

    /// Changes to exactly these LoRAs, in this order. Returns whether they were the last ones too.
    pub(super) fn select(&mut self, checkpoint: &Checkpoint, loras: &[LoraFile], device: &Device) -> Result<bool, EngineError> {
        if loras.is_empty() {
            self.uses_last = false;
            return Ok(true);
        }
        let files = read(loras)?;
        let fingerprint =
            |(bytes, lora): (&Vec<u8>, &LoraFile)| (<[u8; 32]>::from(Sha256::digest(bytes)), lora.scale.to_bits());
        let fingerprints: Vec<Fingerprint> = files.iter().zip(loras).map(fingerprint).collect();
        let cache_hit = self.last.as_ref().is_some_and(|(last, _)| *last == fingerprints);
        if !cache_hit {
            let hashes = fingerprints.iter().map(|(hash, _)| *hash);
            let parsed = files.iter().zip(hashes).map(|(bytes, hash)| self.parsed(bytes, hash, device));
            let parsed = each(parsed)?;
            let overlay = self.overlay(parsed.iter().zip(loras.iter().map(|lora| lora.scale)))?;
            let wrong = |problem| EngineError::Checkpoint { path: checkpoint.directory.clone(), problem };
            let adapted = build(checkpoint, &self.weights, &Arc::new(overlay)).map_err(wrong)?;
            self.last = Some((fingerprints, adapted));
        }
        self.uses_last = true;
        Ok(cache_hit)
    }

    /// Whether LoRAs are in use.
    pub(super) fn has_loras(&self) -> bool {
        self.uses_last
    }

    /// The first tensor of the model itself that is not finite, of those whose names begin with one of `prefixes`.
    pub(super) fn base_at_fault(&self, prefixes: &[&str]) -> candle_core::Result<Option<String>> {
        first_not_finite(self.weights.tensors(), prefixes)
    }

    /// Which of the LoRAs in use makes a tensor of the model not finite, alone, and which tensor; as far as they are kept.
    pub(super) fn lora_at_fault(&self, prefixes: &[&str]) -> Result<Option<String>, EngineError> {
        let Some((fingerprints, _)) = self.last.as_ref().filter(|_| self.uses_last) else { return Ok(None) };
        for (index, (hash, scale)) in fingerprints.iter().enumerate() {
            let Some((_, lora)) = self.read.loras.iter().find(|(known, _)| known == hash) else { continue };
            let scale = f64::from_bits(*scale);
            let overlay = self.overlay([(lora, scale)].into_iter())?;
            if let Some(tensor) = first_not_finite(&overlay, prefixes)? {
                return Ok(Some(format!("lora[{index}] at scale {scale} makes {tensor} so")));
            }
        }
        Ok(None)
    }

    fn parsed(&mut self, bytes: &[u8], hash: [u8; 32], device: &Device) -> Result<Arc<Lora>, LoraError> {
        if let Some(lora) = self.read.take(&hash) {
            return Ok(lora);
        }
        let lora = Arc::new(Lora::parse(bytes, &self.weights.shapes(), device)?);
        self.read.put(hash, Arc::clone(&lora));
        Ok(lora)
    }

    fn overlay<'a>(&self, loras: impl Iterator<Item = (&'a Arc<Lora>, f64)>) -> Result<Tensors, EngineError> {
        let base = self.weights.tensors();
        let mut overlay = Tensors::new();
        each(loras.map(|(lora, scale)| lora.merge(scale, base, &mut overlay)))?;
        // Rounded once, after the last of them.
        let rounded = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_dtype(self.weights.dtype())?));
        overlay.into_iter().map(rounded).collect()
    }
}

/// By name, the first of those whose names begin with one of `prefixes`.
fn first_not_finite(tensors: &Tensors, prefixes: &[&str]) -> candle_core::Result<Option<String>> {
    let is_chosen = |name: &&String| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let mut names: Vec<&String> = tensors.keys().filter(is_chosen).collect();
    names.sort();
    for name in names {
        if !is_finite(&tensors[name])? {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

/// All results, or the first error with its LoRA's place.
fn each<T>(results: impl Iterator<Item = Result<T, LoraError>>) -> Result<Vec<T>, EngineError> {
    let placed = |(index, result): (usize, Result<T, LoraError>)| {
        result.map_err(|error| EngineError::Lora { index, problem: error.to_string() })
    };
    results.enumerate().map(placed).collect()
}

fn read(loras: &[LoraFile]) -> Result<Vec<Vec<u8>>, EngineError> {
    let read = |(index, lora): (usize, &LoraFile)| {
        fs::read(&lora.path).map_err(|error| EngineError::Lora { index, problem: format!("cannot be read: {error}") })
    };
    loras.iter().enumerate().map(read).collect()
}

fn build(checkpoint: &Checkpoint, weights: &Weights, overlay: &Arc<Tensors>) -> Result<Adapted, String> {
    weights.build(overlay, |vb| {
        Ok(Adapted {
            text_encoder: TextEncoder::new(&checkpoint.text_encoder, &vb.pp("text_encoder"))?,
            unet: Unet::new(&checkpoint.unet, &vb.pp("unet"))?,
        })
    })
}
