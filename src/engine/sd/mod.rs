//! Stable Diffusion 1 and 2 in diffusers' layout: text encoder, UNet, VAE and the way from a prompt to images.

mod adapters;
mod attention;
mod bands;
pub mod chunks;
pub mod clip;
pub mod config;
mod diagnosis;
pub mod foreign_syntax;
pub mod inversion;
mod latent_batch;
mod memory;
pub mod pack;
mod pipeline;
mod resnet;
mod start;
mod text;
mod tiling;
pub mod tokens;
mod transformer;
pub mod unet;
pub mod vae;
pub mod vae_encoder;
pub mod weighting;

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device};

use self::adapters::Adapters;
use self::memory::{MemoryEstimate, TilingPlan};
use self::tokens::PromptTokenizer;
use self::vae::VaeDecoder;
use self::vae_encoder::VaeEncoder;
use super::checkpoint::Checkpoint;
use super::original_names::Layout;
use super::weights::Weights;
use super::{Engine, EngineError, Generated, Loading, LoraFile, Order};
use crate::job::task::prompt::PromptSyntax;
use crate::job::task::{GuidanceScale, Size};

/// Components that hold tensors.
const COMPONENTS: [&str; 3] = ["text_encoder", "unet", "vae"];

/// A loaded checkpoint. The stages of a generation are methods of their own, in the order they run:
/// [`use_loras`](Self::use_loras), [`encode_prompt`](Self::encode_prompt), [`predict_noise`](Self::predict_noise) at every
/// step, [`decode`](Self::decode).
pub struct StableDiffusion {
    checkpoint: Checkpoint,
    device: Device,
    tokenizer: PromptTokenizer,
    prompts: PromptSyntax,
    defaults: Defaults,
    loading: Loading,
    /// Bytes that the process may use for tensors, where somebody has said so.
    memory_budget: Option<u64>,
    resident_bytes: u64,
    memory_estimate: MemoryEstimate,
    /// Of the generation under way.
    tiling_plan: TilingPlan,
    adapters: Adapters,
    vae: VaeDecoder,
    /// Where the checkpoint has one.
    vae_encoder: Option<VaeEncoder>,
}

/// What most jobs ask for: the warm-up generates it.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    width_px: u32,
    height_px: u32,
    guidance_scale: f64,
}

impl StableDiffusion {
    /// Loads the checkpoint in `directory` (`model_index.json`, `unet/`, `vae/`, `text_encoder/`, `tokenizer/`,
    /// `scheduler/`); weights may be f16, bf16 or f32 safetensors, or packed ([`Self::pack`]).
    ///
    /// `dtype`: what they are kept in, and the layers computed in: f32, f16 or bf16
    /// ([`device::usual_dtype`](super::device::usual_dtype)). Latents, schedule, guidance, the timestep's waves and the
    /// statistics of norms are f32 with any of them.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and what is missing or not supported.
    pub fn load(directory: &Path, dtype: DType, device: Device) -> Result<Self, EngineError> {
        Self::assemble(directory, directory, device, |_, device| Weights::read(directory, &COMPONENTS, (dtype, device)))
    }

    /// The same with all weights out of one `file` under the names of Stable Diffusion's first release
    /// (`model.diffusion_model.…`); `directory` has all the other files.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_single_file(directory: &Path, file: &Path, dtype: DType, device: Device) -> Result<Self, EngineError> {
        Self::assemble(directory, file, device, |checkpoint, device| {
            let unet = Layout::new(&checkpoint.unet.layers(), &checkpoint.unet.attention_up());
            let levels = checkpoint.vae.block_out_channels.len();
            Weights::read_single_file(file, &unet, levels, (dtype, device))
        })
    }

    /// `from`: what is told of where the weights come from.
    fn assemble(
        directory: &Path,
        from: &Path,
        device: Device,
        weights: impl FnOnce(&Checkpoint, &Device) -> Result<Weights, EngineError>,
    ) -> Result<Self, EngineError> {
        let began = Instant::now();
        let checkpoint = Checkpoint::read(directory)?;
        let reading = Instant::now();
        let weights = weights(&checkpoint, &device)?;
        let read = reading.elapsed();
        let loaded = Self::with(checkpoint, weights, from, device)?;
        Ok(Self { loading: Loading { read, build: began.elapsed().saturating_sub(read) }, ..loaded })
    }

    fn with(checkpoint: Checkpoint, weights: Weights, from: &Path, device: Device) -> Result<Self, EngineError> {
        let positions = checkpoint.text_encoder.max_position_embeddings;
        let tokenizer = PromptTokenizer::read(&checkpoint.directory.join("tokenizer"), &checkpoint.pad_token, positions)?;
        let wrong = |problem| EngineError::Checkpoint { path: from.to_owned(), problem };
        let vae = weights.build(&std::sync::Arc::default(), |vb| VaeDecoder::new(&checkpoint.vae, &vb.pp("vae")));
        let vae = vae.map_err(wrong)?;
        let (memory_estimate, resident_bytes) =
            (MemoryEstimate::new(&checkpoint.unet, &checkpoint.vae, weights.dtype()), weights.bytes());
        let encodes = weights.tensors().contains_key("vae.encoder.conv_in.weight");
        let encoder = || weights.build(&std::sync::Arc::default(), |vb| VaeEncoder::new(&checkpoint.vae, &vb.pp("vae")));
        let vae_encoder = encodes.then(encoder).transpose().map_err(wrong)?;
        let sides = checkpoint.unet.sample_size;
        let factor = checkpoint.vae.pixels_per_latent();
        let width_px = (sides.width() * factor) as u32;
        let height_px = (sides.height() * factor) as u32;
        let adapters = Adapters::new(&checkpoint, weights).map_err(wrong)?;
        Ok(Self {
            checkpoint,
            device,
            tokenizer,
            prompts: PromptSyntax::Plain,
            defaults: Defaults { width_px, height_px, guidance_scale: 1.0 },
            loading: Loading::default(),
            memory_budget: None,
            resident_bytes,
            memory_estimate,
            tiling_plan: TilingPlan::default(),
            adapters,
            vae,
            vae_encoder,
        })
    }

    /// Bytes of the model's own tensors.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes
    }

    /// Keeps the tensors of the model and of a generation within so many bytes; what a LoRA changes comes on top.
    #[must_use]
    pub fn with_memory_budget(self, memory_budget: Option<u64>) -> Self {
        Self { memory_budget, ..self }
    }

    /// Reads prompts by these rules from now on; plain ones are the default.
    #[must_use]
    pub fn with_prompts(self, prompts: PromptSyntax) -> Self {
        Self { prompts, ..self }
    }

    /// What most jobs will ask for, and the warm-up generates; where nobody says it, the size that the checkpoint was trained on, without
    /// guidance.
    #[must_use]
    pub fn with_defaults(self, size: Size, guidance_scale: GuidanceScale) -> Self {
        let (width_px, height_px) = (size.width_px(), size.height_px());
        Self { defaults: Defaults { width_px, height_px, guidance_scale: guidance_scale.get() }, ..self }
    }

    /// How long its load took.
    #[must_use]
    pub fn loading(&self) -> Loading {
        self.loading
    }

    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Makes the following stages generate with exactly these LoRAs. The base tensors stay as they are, and files and
    /// scales that were the last ones too cost nothing: then this returns true.
    ///
    /// # Errors
    /// [`EngineError::Lora`] says which one is at fault and why; what was generated with before stays in use.
    pub fn use_loras(&mut self, loras: &[LoraFile]) -> Result<bool, EngineError> {
        self.adapters.select(&self.checkpoint, loras, &self.device)
    }
}

impl Engine for StableDiffusion {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        pipeline::warm_up(self)
    }

    fn generate_together(&mut self, orders: &[Order]) -> Result<Vec<Generated>, EngineError> {
        pipeline::generate(self, orders)
    }
}
