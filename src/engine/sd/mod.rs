//! Stable Diffusion 1 and 2 in diffusers' layout: text encoder, UNet, VAE and the way from a prompt to pictures.

mod adapters;
mod attention;
pub mod clip;
pub mod config;
mod conv;
mod pipeline;
mod resnet;
pub mod tokens;
mod transformer;
pub mod unet;
pub mod vae;

use std::path::Path;

use candle_core::Device;

use self::adapters::Adapters;
use self::tokens::PromptTokenizer;
use self::vae::VaeDecoder;
use super::checkpoint::Checkpoint;
use super::weights::Weights;
use super::{Engine, EngineError, LoraFile, PaintRequest, Picture, Watch};

/// A loaded checkpoint. The stages of a painting are methods of their own, in the order they run:
/// [`use_loras`](Self::use_loras), [`encode_prompt`](Self::encode_prompt), [`denoise`](Self::denoise),
/// [`decode`](Self::decode).
pub struct StableDiffusion {
    checkpoint: Checkpoint,
    device: Device,
    tokenizer: PromptTokenizer,
    adapters: Adapters,
    vae: VaeDecoder,
}

impl StableDiffusion {
    /// Loads the checkpoint in `folder` (`model_index.json`, `unet/`, `vae/`, `text_encoder/`, `tokenizer/`,
    /// `scheduler/`); weights may be f16, bf16 or f32 safetensors and are kept in f32.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and what is missing or not supported.
    pub fn load(folder: &Path, device: Device) -> Result<Self, EngineError> {
        let checkpoint = Checkpoint::read(folder)?;
        let positions = checkpoint.text_encoder.max_position_embeddings;
        let tokenizer = PromptTokenizer::read(&folder.join("tokenizer"), &checkpoint.pad_token, positions)?;
        let weights = Weights::read(folder, &device)?;
        let wrong = |problem| EngineError::Checkpoint { path: folder.to_owned(), problem };
        let vae = weights.build(&std::sync::Arc::default(), |vb| VaeDecoder::new(&checkpoint.vae, &vb.pp("vae")));
        let vae = vae.map_err(wrong)?;
        let adapters = Adapters::new(&checkpoint, weights).map_err(wrong)?;
        Ok(Self { checkpoint, device, tokenizer, adapters, vae })
    }

    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Makes the following stages paint with exactly these LoRAs. The base tensors stay as they are, and files and
    /// scales that were the last ones too cost nothing: then this returns true.
    ///
    /// # Errors
    /// [`EngineError::Lora`] says which one is at fault and why; what was painted with before stays in use.
    pub fn use_loras(&mut self, loras: &[LoraFile]) -> Result<bool, EngineError> {
        self.adapters.select(&self.checkpoint, loras, &self.device)
    }
}

impl Engine for StableDiffusion {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        pipeline::warm_up(self)
    }

    fn paint(&mut self, request: &PaintRequest, watch: &Watch) -> Result<Vec<Picture>, EngineError> {
        pipeline::paint(self, request, watch)
    }
}
