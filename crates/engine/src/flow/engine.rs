//! A flow model as an engine: the words of a request to generated images, with the LoRAs that it asks for.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, bail};
use image::{Rgb, RgbImage};
use serde::Deserialize;

use super::autoencoder::{Autoencoder, AutoencoderConfig};
use super::family::Family;
use super::requests::{Wanted, readable};
use super::start::Given;
use crate::adapters::Adapters;
use crate::device::keeping_uploads;
use crate::device_errors::{advise_smaller, classify_memory_error};
use crate::graphs::{GraphCounts, Graphs, Kind};
use crate::json_config::read;
use crate::kept_encoder::KeptEncoder;
use crate::preview::Previewer;
use crate::qwen::packing::Grid;
use crate::qwen::references::Reference;
use crate::schedule::flow::{FlowConfig, FlowSchedule};
use crate::step_cache::FirstBlockCache;
use crate::transformer_file::read_with_transformer;
use crate::weights::{Weights, shapes_of};
use crate::{Engine, EngineError, Generated, LoraFile, QueuedRequest, Watch};

/// Sides of the image that the warm-up shows a model which is shown images.
const WARM_UP_PX: u32 = 64;

/// How a checkpoint is loaded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The transformer in one file (safetensors or GGUF), under diffusers' names or those of its first release; none: the checkpoint's own.
    pub transformer: Option<PathBuf>,
    /// The weights of the large text encoder (Qwen3, T5) in a GGUF file under llama.cpp's names; none: the checkpoint's own.
    pub text_encoder: Option<PathBuf>,
    /// Of weights and of all that is computed: bf16 or f32, for f16 overflows.
    pub dtype: DType,
    /// What the warm-up generates.
    pub width_px: u32,
    pub height_px: u32,
    /// Bytes of the device that may be used. With one the autoencoder goes over an image in bands, and where the text encoder does not fit into it
    /// with the rest, it is read again for every job.
    pub memory_budget: Option<u64>,
    /// As of [`sd::settings::Settings`](crate::sd::settings::Settings::graphs).
    pub graphs: bool,
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(rename = "_class_name")]
    class: String,
}

/// What a checkpoint says about itself.
pub(super) struct Checkpoint<Config> {
    pub(super) directory: PathBuf,
    pub(super) config: Config,
    pub(super) vae: AutoencoderConfig,
    pub(super) schedule: FlowConfig,
}

/// A loaded checkpoint with all that a generation needs.
pub struct FlowEngine<F: Family> {
    pub(super) checkpoint: Checkpoint<F::Config>,
    settings: Settings,
    pub(super) device: Device,
    pub(super) adapters: Adapters<F>,
    /// Of steps.
    graphs: Graphs,
    pub(super) vae: Autoencoder,
    pub(super) previewer: Previewer,
    encoder: KeptEncoder<F::Encoder>,
}

impl<F: Family> FlowEngine<F> {
    /// Looks at the JSON files of `directory`, a diffusers checkpoint, not at its weights.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and what is missing or not supported, or the family that it is of.
    pub fn check(directory: &Path) -> Result<(), EngineError> {
        Checkpoint::read::<F>(directory).map(drop)
    }

    /// Loads text encoder, transformer and autoencoder out of `directory`, a diffusers checkpoint.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and what is missing or not supported.
    pub fn load(directory: &Path, settings: Settings, device: Device) -> Result<Self, EngineError> {
        if settings.dtype == DType::F16 {
            let allowed = if device.is_cpu() { "f32" } else { "bf16 or f32" };
            let problem = format!("is f16, in which {} overflows; use {allowed}", F::NAME);
            return Err(EngineError::Request { field: "engine.dtype", problem });
        }
        let checkpoint = Checkpoint::read::<F>(directory)?;
        let kept = (settings.dtype, &device);
        let (encoder, encoder_bytes) = F::read_encoder(directory, &checkpoint.config, settings.text_encoder.as_deref(), kept)?;
        let vae = Autoencoder::read(directory, &checkpoint.vae, kept)?;
        let weights = match &settings.transformer {
            None => Weights::read(directory, F::ADAPTED, kept)?,
            Some(file) => {
                let expected = shapes_of(|vb| F::build(&checkpoint.config, vb))?;
                read_with_transformer(directory, F::ADAPTED, (file, &expected), kept)?
            }
        };
        let resident = encoder_bytes + vae.bytes() + weights.bytes();
        let config = checkpoint.config.clone();
        let adapters = Adapters::new(weights, move |vb| F::build(&config, vb));
        let from = settings.transformer.as_deref().unwrap_or(directory);
        let adapters = adapters.map_err(|problem| EngineError::Checkpoint { path: from.to_owned(), problem })?;
        let encoder = KeptEncoder::new(encoder, resident, settings.memory_budget);
        let room_bytes = settings.memory_budget.map(|bytes| bytes.saturating_sub(resident));
        let graphs = Graphs::new(settings.graphs, &device, room_bytes);
        Ok(Self { checkpoint, settings, device, adapters, graphs, vae, previewer: Previewer::default(), encoder })
    }

    /// Whether the text encoder stays in memory between jobs.
    #[must_use]
    pub fn keeps_encoder(&self) -> bool {
        self.encoder.stays()
    }

    /// Makes the following stages generate with exactly these LoRAs; those used last cost nothing, then this returns true.
    ///
    /// # Errors
    /// [`EngineError::Lora`] says which one is at fault and why; what was generated with before stays in use.
    pub fn use_loras(&mut self, loras: &[LoraFile]) -> Result<bool, EngineError> {
        let cache_hit = self.adapters.select(&self.checkpoint.directory, loras)?;
        if !cache_hit {
            self.graphs.keep(self.adapters.modules());
        }
        match self.adapters.learned_words().first() {
            None => Ok(cache_hit),
            Some(word) => {
                let problem =
                    format!("brings the word {:?} (bundle_emb), which this model does not read; use it without", word.text);
                Err(EngineError::Lora { index: word.lora, problem })
            }
        }
    }

    /// What the text encoders make of a prompt.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the prompt is too long, or there is no memory.
    pub fn encode_prompt(&mut self, prompt: &str) -> Result<F::Text, EngineError> {
        let mut encoder = self.encoder.take().map_or_else(|| self.read_encoder(), Ok)?;
        let text = self.adapters.current().encode(&mut encoder, prompt);
        self.encoder.keep(encoder);
        text
    }

    /// The transformer's look at `latents` (1, C, H, W), f32, at a timestep of 0 to 1000: the velocity, in the same shape.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn predict(&self, latents: &Tensor, timestep: f32, text: &F::Text) -> Result<Tensor, EngineError> {
        self.predict_over(latents, timestep, text, &[])
    }

    /// [`Self::predict`] next to images that the transformer is shown.
    ///
    /// # Errors
    /// As of [`Self::predict`].
    pub fn predict_over(
        &self,
        latents: &Tensor,
        timestep: f32,
        text: &F::Text,
        references: &[Reference],
    ) -> Result<Tensor, EngineError> {
        let model = self.adapters.current();
        let context = model.context(text, self.checkpoint.vae.grid(latents)?, references)?;
        Ok(self.velocity(latents, &model.waves(timestep)?, &context)?)
    }

    /// The transformer's look at `latents` (1, C, H, W), f32, in the time and the context of a step: the velocity, in the same shape.
    pub(super) fn velocity(&self, latents: &Tensor, waves: &Tensor, context: &F::Context) -> candle_core::Result<Tensor> {
        let model = self.adapters.current();
        let inputs = [latents.clone(), waves.clone()].into_iter().chain(F::tensors(context)).collect::<Vec<_>>();
        let shape = inputs.iter().flat_map(|input| input.dims().to_vec()).collect::<Vec<_>>();
        let kind = Kind { module: self.adapters.module(), choices: Vec::new() };
        keeping_uploads(&self.device, &shape, || {
            self.graphs.repeat(kind, &inputs, |inputs| {
                let [latents, waves, rest @ ..] = inputs else { bail!("a look has latents and a time") };
                let context = F::with_tensors(context, rest)?;
                model.predict(latents, &context, &model.condition(waves, &context)?)
            })
        })
    }

    /// [`Self::velocity`], which takes over what `cache` lets it. The device is told each of its operations: what is done follows from the values.
    pub(super) fn cached_velocity(
        &self,
        latents: &Tensor,
        waves: &Tensor,
        context: &F::Context,
        cache: &mut FirstBlockCache,
    ) -> candle_core::Result<Tensor> {
        let model = self.adapters.current();
        let conditioning = model.condition(waves, context)?;
        let first = model.first_block(latents, context, &conditioning)?;
        let tokens = cache.last_block(&first, || model.last_block(&first, context, &conditioning))?;
        model.velocity(&tokens, context, &conditioning)
    }

    /// How many steps the GPU was told once, and repeated.
    #[must_use]
    pub fn graph_counts(&self) -> GraphCounts {
        self.graphs.counts()
    }

    /// The noise levels of an image of this size.
    #[must_use]
    pub fn schedule(&self, steps: u32, grid: Grid) -> FlowSchedule {
        F::schedule(&self.checkpoint.schedule, steps, grid.tokens())
    }

    /// `image` as the transformer's tokens, in the size in which it is shown it.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the image is too small or too long, or this model is shown none; or there is no memory.
    pub fn encode_reference(&self, image: &RgbImage) -> Result<Reference, EngineError> {
        self.vae.encode(image)
    }

    /// `latents`: (1, C, H, W), f32, as the loop leaves them. Returns the image, (1, 3, height, width), f32 around -1 to 1; in bands it is the same image
    /// in a third of the memory.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn decode(&self, latents: &Tensor, is_banded: bool) -> Result<Tensor, EngineError> {
        Ok(self.vae.decode(latents, is_banded)?)
    }

    /// An image's sides in tokens.
    ///
    /// # Errors
    /// [`EngineError::Request`] when a side is no multiple of a token's.
    fn grid(&self, request: Wanted<'_>) -> Result<Grid, EngineError> {
        Grid::of_image(request.width_px, request.height_px, self.checkpoint.vae.token_px())
    }

    fn read_encoder(&self) -> Result<F::Encoder, EngineError> {
        let kept = (self.settings.dtype, &self.device);
        let gguf = self.settings.text_encoder.as_deref();
        Ok(F::read_encoder(&self.checkpoint.directory, &self.checkpoint.config, gguf, kept)?.0)
    }

    /// One request; where there was no memory for it once more with nothing else in the way.
    fn in_memory(&mut self, request: Wanted<'_>, watch: &Watch) -> Generated {
        let is_banded = self.settings.memory_budget.is_some();
        match self.attempt(request, watch, is_banded).map_err(classify_memory_error) {
            Err(EngineError::OutOfMemory { problem }) => {
                tracing::warn!(%problem, "no memory: generating again without the text encoder, and decoding in bands");
                drop(self.encoder.take());
                self.graphs.forget();
                self.attempt(request, watch, true).map_err(classify_memory_error).map_err(advise_smaller)
            }
            generated => generated,
        }
    }

    fn attempt(&mut self, request: Wanted<'_>, watch: &Watch, is_banded: bool) -> Generated {
        let grid = self.grid(request)?;
        let text = self.encode_prompt(request.prompt)?;
        let references = request.images.iter().map(|image| self.encode_reference(image)).collect::<Result<Vec<_>, _>>()?;
        if watch.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let start = request.start.map(|(image, _)| self.start(image)).transpose()?;
        let latents = self.denoise(request, &text, &Given { grid, references, start }, (watch, is_banded))?;
        self.develop(request, &text, &latents, is_banded)
    }
}

impl<Config> Checkpoint<Config> {
    fn read<F: Family<Config = Config>>(directory: &Path) -> Result<Self, EngineError> {
        let index = directory.join("model_index.json");
        let class = read::<ModelIndex>(&index, &[])?.class;
        if class != F::PIPELINE {
            let supported = F::PIPELINE;
            let problem =
                format!("_class_name is {class:?}, and the manifest says family {}; supported: {supported:?}", F::NAME);
            return Err(EngineError::Checkpoint { path: index, problem });
        }
        let checkpoint = Self {
            directory: directory.to_owned(),
            config: F::read(directory)?,
            vae: AutoencoderConfig::read(directory, F::AUTOENCODER)?,
            schedule: FlowConfig::read(directory)?,
        };
        let channels = F::latent_channels(&checkpoint.config);
        let found = checkpoint.vae.vae.latent_channels;
        if found == channels {
            return Ok(checkpoint);
        }
        let problem = format!("latent_channels must be {channels}, as the transformer has them, not {found}");
        Err(EngineError::Checkpoint { path: directory.join("vae"), problem })
    }
}

impl<F: Family> Engine for FlowEngine<F> {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        let request = Wanted {
            prompt: "warm-up",
            images: &[],
            loras: &[],
            start: None,
            steps: 1,
            step_cache: None,
            width_px: self.settings.width_px,
            height_px: self.settings.height_px,
            seeds: &[0],
        };
        self.use_loras(&[])?;
        if F::EDITS {
            self.encode_reference(&RgbImage::from_pixel(WARM_UP_PX, WARM_UP_PX, Rgb([128; 3])))?;
        }
        self.in_memory(request, &Watch::new(|_| ())).map(drop)
    }

    fn generate_together(&mut self, queued_requests: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
        let requests = queued_requests.iter().map(|queued| readable::<F>(&queued.request)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = requests.first().copied() else { return Ok(Vec::new()) };
        self.grid(first)?;
        let cache_hit = self.use_loras(first.loras)?;
        if !first.loras.is_empty() {
            for queued in queued_requests {
                queued.watch.loras_ready(cache_hit);
            }
        }
        Ok(requests.into_iter().zip(queued_requests).map(|(request, queued)| self.in_memory(request, &queued.watch)).collect())
    }
}
