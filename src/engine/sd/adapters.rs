//! Text encoder and UNet, with and without LoRAs: which of the two paints, and for which files it was built.

use std::fs;
use std::sync::Arc;

use candle_core::Device;
use sha2::{Digest, Sha256};

use super::clip::TextEncoder;
use super::unet::Unet;
use crate::engine::checkpoint::Checkpoint;
use crate::engine::lora::Lora;
use crate::engine::weights::{Tensors, Weights};
use crate::engine::{EngineError, LoraFile};

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
}

impl Adapters {
    pub(super) fn new(checkpoint: &Checkpoint, weights: Weights) -> Result<Self, String> {
        let base = build(checkpoint, &weights, &Arc::default())?;
        Ok(Self { weights, base, last: None, uses_last: false })
    }

    /// What paints now.
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
            |(bytes, lora): (&Vec<u8>, &LoraFile)| (<[u8; 32]>::from(Sha256::digest(bytes)), lora.scale.get().to_bits());
        let fingerprints: Vec<Fingerprint> = files.iter().zip(loras).map(fingerprint).collect();
        let cache_hit = self.last.as_ref().is_some_and(|(last, _)| *last == fingerprints);
        if !cache_hit {
            let overlay = self.overlay(&files, loras, device)?;
            let wrong = |problem| EngineError::Checkpoint { path: checkpoint.folder.clone(), problem };
            let adapted = build(checkpoint, &self.weights, &Arc::new(overlay)).map_err(wrong)?;
            self.last = Some((fingerprints, adapted));
        }
        self.uses_last = true;
        Ok(cache_hit)
    }

    fn overlay(&self, files: &[Vec<u8>], loras: &[LoraFile], device: &Device) -> Result<Tensors, EngineError> {
        let base = self.weights.tensors();
        let mut overlay = Tensors::new();
        for (index, (bytes, lora)) in files.iter().zip(loras).enumerate() {
            let merged = Lora::parse(bytes, base, device).and_then(|parsed| parsed.merge(lora.scale.get(), base, &mut overlay));
            merged.map_err(|error| EngineError::Lora { index, problem: error.to_string() })?;
        }
        Ok(overlay)
    }
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
