//! Stable Diffusion 1, 2 and XL in diffusers' layout: text encoder, UNet, VAE and the way from a prompt to images.

mod ahead;
mod attention;
mod bands;
pub mod checkpoint;
pub mod chunks;
pub mod clip;
pub mod conditioning;
pub mod config;
mod control;
pub mod controlnet;
mod diagnosis;
pub(crate) mod encoder_layer;
pub mod foreign_syntax;
pub mod guidance;
mod image_prompt;
pub mod inversion;
pub mod ip_adapter;
pub(crate) mod kept;
mod latent_batch;
mod lpw_xl;
mod memory;
mod nets;
pub mod pack;
mod pipeline;
mod prediction;
mod preview;
mod prompt_encoder;
mod resnet;
pub mod settings;
pub mod sizes;
mod start;
mod steering;
pub mod text;
mod tiles;
pub mod tiling;
mod time_embedding;
pub mod tokens;
mod transformer;
pub mod unet;
mod unet_encoder;
pub mod vae;
pub mod vae_encoder;
pub(crate) mod vision;
pub mod weighting;

use std::time::Instant;

use candle_core::Device;
use candle_nn::VarBuilder;

use self::checkpoint::Checkpoint;
use self::clip::TextEncoder;
use self::controlnet::files::Loaded;
use self::ip_adapter::files::IpAdapters;
use self::memory::MemoryEstimate;
use self::settings::{Defaults, PromptSyntax, Settings};
use self::tokens::PromptTokenizer;
use self::unet::Unet;
use self::vae::VaeDecoder;
use self::vae_encoder::VaeEncoder;
use super::adapters::Adapters;
use super::graphs::{GraphCounts, Graphs};
use super::loading::Loading;
use super::original_names::Layout;
use super::preview::Previewer;
use super::single_file::SingleFile;
use super::weights::Weights;
use super::{EngineError, LoraFile};

/// A loaded checkpoint. The stages of a generation are methods of their own, in the order they run:
/// [`use_loras`](Self::use_loras), [`encode_prompt`](Self::encode_prompt), [`predict_noise`](Self::predict_noise) at every
/// step, [`decode`](Self::decode).
pub struct StableDiffusion {
    checkpoint: Checkpoint,
    device: Device,
    /// One for each text encoder.
    tokenizers: Vec<PromptTokenizer>,
    prompts: PromptSyntax,
    defaults: Defaults,
    loading: Loading,
    /// Bytes that the process may use for tensors, where someone has said so.
    memory_budget: Option<u64>,
    resident_bytes: u64,
    memory_estimate: MemoryEstimate,
    adapters: Adapters<Adapted>,
    /// Of denoising steps.
    graphs: Graphs,
    vae: VaeDecoder,
    previewer: Previewer,
    /// Whether the VAE computes in f32 though the weights are f16, in which it is known to overflow.
    upcasts_vae: bool,
    /// Where the checkpoint has one.
    vae_encoder: Option<VaeEncoder>,
    /// In the order of the settings.
    controlnets: Vec<Loaded>,
    ip_adapters: IpAdapters,
}

/// The parts of a checkpoint that a LoRA may change.
struct Adapted {
    /// One, or SDXL's two.
    text_encoders: Vec<TextEncoder>,
    unet: Unet,
}

impl Adapted {
    fn new(checkpoint: &Checkpoint, vb: &VarBuilder) -> candle_core::Result<Self> {
        let encoders = checkpoint.text_encoders.iter();
        let encoders = encoders.map(|encoder| TextEncoder::new(&encoder.config, encoder.output, &vb.pp(encoder.component)));
        Ok(Self {
            text_encoders: encoders.collect::<candle_core::Result<_>>()?,
            unet: Unet::new(&checkpoint.unet, &vb.pp("unet"))?,
        })
    }
}

impl StableDiffusion {
    /// Loads the checkpoint in `settings.directory` (`model_index.json`, `unet/`, `vae/`, `text_encoder/`, `tokenizer/`,
    /// `scheduler/`; SDXL: `text_encoder_2/` and `tokenizer_2/`); weights may be f16, bf16 or f32 safetensors, packed ([`Self::pack`]), or in one file.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and what is missing or not supported.
    pub fn load(settings: &Settings) -> Result<Self, EngineError> {
        let began = Instant::now();
        let mut checkpoint = Checkpoint::read(&settings.directory)?;
        checkpoint.schedule.timestep_spacing = settings.timestep_spacing.or(checkpoint.schedule.timestep_spacing);
        let reading = Instant::now();
        let weights = weights(&checkpoint, settings)?.laid_out()?;
        let read = reading.elapsed();
        let loaded = Self::with(checkpoint, weights, settings)?;
        Ok(Self { loading: Loading { read, build: began.elapsed().saturating_sub(read) }, ..loaded })
    }

    fn with(checkpoint: Checkpoint, weights: Weights, settings: &Settings) -> Result<Self, EngineError> {
        let tokenizers = checkpoint.text_encoders.iter().map(|encoder| {
            let directory = checkpoint.directory.join(encoder.tokenizer);
            let [positions, vectors] = [encoder.config.max_position_embeddings, encoder.config.vocab_size];
            PromptTokenizer::read(&directory, &encoder.pad_token, positions, vectors)
        });
        let tokenizers = tokenizers.collect::<Result<Vec<_>, _>>()?;
        let from = settings.single_file.as_ref().unwrap_or(&settings.directory);
        let wrong = |problem| EngineError::Checkpoint { path: from.clone(), problem };
        let upcasts_vae = checkpoint.upcasts_vae(weights.dtype());
        let upcast = if upcasts_vae { Some(weights.in_f32("vae.")?) } else { None };
        let vae_weights = upcast.as_ref().unwrap_or(&weights);
        let vae = vae_weights.build(&std::sync::Arc::default(), |vb| VaeDecoder::new(&checkpoint.vae, &vb.pp("vae")));
        let vae = vae.map_err(wrong)?;
        let dtypes = (weights.dtype(), vae_weights.dtype());
        let kept = (weights.dtype(), &settings.device);
        let controlnets = settings.controlnets.iter().map(|file| Loaded::read(file, &checkpoint, kept));
        let controlnets = controlnets.collect::<Result<Vec<_>, _>>()?;
        let ip_adapters = IpAdapters::read(&settings.ip_adapters, &checkpoint, kept)?;
        let beside = controlnets.iter().map(|loaded| loaded.weights.bytes()).sum::<u64>() + ip_adapters.bytes();
        let resident_bytes = weights.bytes() + upcast.as_ref().map_or(0, Weights::bytes) + beside;
        let encodes = weights.tensors().contains_key("vae.encoder.conv_in.weight");
        let vae_encoder = encodes.then(|| {
            vae_weights.build(&std::sync::Arc::default(), |vb| VaeEncoder::new(&checkpoint.vae, &vb.pp("vae"))).map_err(wrong)
        });
        let vae_encoder = vae_encoder.transpose()?;
        let sides = checkpoint.unet.sample_size;
        let factor = checkpoint.vae.pixels_per_latent();
        let width_px = (sides.width() * factor) as u32;
        let height_px = (sides.height() * factor) as u32;
        let built = checkpoint.clone();
        let adapters = Adapters::new(weights, move |vb| Adapted::new(&built, vb)).map_err(wrong)?;
        let channels_ahead = adapters.current().unet.parts().channels_ahead();
        let memory_estimate = MemoryEstimate::new(&checkpoint.unet, &checkpoint.vae, dtypes, channels_ahead);
        Ok(Self {
            checkpoint,
            device: settings.device.clone(),
            tokenizers,
            prompts: settings.prompts,
            defaults: settings.defaults.unwrap_or(Defaults { width_px, height_px, guidance_scale: 1.0 }),
            loading: Loading::default(),
            memory_budget: settings.memory_budget,
            resident_bytes,
            memory_estimate,
            adapters,
            graphs: Graphs::new(
                settings.graphs,
                &settings.device,
                settings.memory_budget.map(|bytes| bytes.saturating_sub(resident_bytes)),
            ),
            vae,
            previewer: Previewer::default(),
            upcasts_vae,
            vae_encoder,
            controlnets,
            ip_adapters,
        })
    }

    /// Bytes of the model's own tensors.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.resident_bytes
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

    /// How many denoising steps the GPU was told once, and repeated.
    #[must_use]
    pub fn graph_counts(&self) -> GraphCounts {
        self.graphs.counts()
    }

    /// Makes the following stages generate with exactly these LoRAs. The base tensors stay as they are, and files and
    /// scales that were the last ones too cost nothing: then this returns true.
    ///
    /// # Errors
    /// [`EngineError::Lora`] says which one is at fault and why; what was generated with before stays in use.
    pub fn use_loras(&mut self, loras: &[LoraFile]) -> Result<bool, EngineError> {
        let cache_hit = self.adapters.select(&self.checkpoint.directory, loras)?;
        if !cache_hit {
            // An overlay that is gone will not come back, nor will what reads it.
            self.graphs.keep(self.adapters.modules());
        }
        Ok(cache_hit)
    }
}

/// The weights of a checkpoint, wherever `settings` say they lie.
fn weights(checkpoint: &Checkpoint, settings: &Settings) -> Result<Weights, EngineError> {
    let kept = (settings.dtype, &settings.device);
    let components = checkpoint.components();
    let Some(file) = &settings.single_file else { return Weights::read(&settings.directory, &components, kept) };
    let names = SingleFile {
        unet: Layout::new(&checkpoint.unet.layers(), &checkpoint.unet.attention_up()),
        vae_levels: checkpoint.vae.block_out_channels.len(),
        is_xl: checkpoint.is_xl(),
    };
    Weights::read_single_file(file, &names, kept)
}
