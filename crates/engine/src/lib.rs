//! The engine generates: a task in, pixels out. It knows no cloud, no async and no events.

mod activations;
mod adapter_config;
mod adapters;
mod attention;
pub mod canny;
pub mod classifier;
pub mod device;
mod device_errors;
mod finite;
mod float_formats;
pub mod flow;
mod fp8;
mod gguf_file;
mod gguf_transformer;
mod gguf_weights;
pub mod graphs;
mod json_config;
mod kept_encoder;
mod labels;
mod layers;
mod learned_word;
mod listener;
mod loader;
pub mod loading;
pub mod lora;
mod module_pattern;
pub mod noise;
mod original_layers;
mod original_names;
mod packed;
pub mod pixels;
pub mod present;
pub mod preview;
pub mod qwen;
mod recent;
pub mod resample;
mod rotary;
pub mod schedule;
pub mod sd;
pub mod segmenter;
mod single_file;
pub mod steering;
pub mod step_cache;
mod stored;
pub mod tensor_file;
mod tensor_table;
pub mod thread;
mod timestep;
mod tokenizer_config;
mod transformer_file;
mod unread;
pub mod upscaler;
mod weights;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image::{GrayImage, RgbImage};

use self::listener::PreviewListener;
use self::schedule::scheduler::Scheduler;
use self::steering::{Control, ImagePrompt};
use self::step_cache::StepCache;

/// What every engine can do. One OS thread owns it ([`thread::EngineThread`]), so that it needs no locks.
pub trait Engine {
    /// Generates once as jobs usually ask for it, in a single step, so that the first of them pays for nothing but itself.
    ///
    /// # Errors
    /// Whatever would have failed the first job.
    fn warm_up(&mut self) -> Result<(), EngineError>;

    /// Generates all images of all queued requests as one batch, looking at their watches between denoising steps. The requests of the
    /// queued requests agree ([`Request::agrees_with`]). Returns one result per request, in their order: a request that is cancelled
    /// leaves the batch, and the others go on.
    ///
    /// # Errors
    /// What keeps all of them from being generated: [`EngineError`] says whose fault it is. The engine stays usable after
    /// each of them but [`EngineError::Fatal`].
    fn generate_together(&mut self, queued_requests: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError>;

    /// Generates all images of one text.
    ///
    /// # Errors
    /// As [`Self::generate_together`], or [`EngineError::Cancelled`].
    fn generate(&mut self, request: &GenerateRequest, watch: &Watch) -> Generated {
        let queued = QueuedRequest { request: Request::Generate(request.clone()), watch: watch.clone() };
        self.generate_together(&[queued])?.pop().unwrap_or(Err(EngineError::Gone))
    }
}

/// The images of one request, or why there are none.
pub type Generated = Result<Vec<Image>, EngineError>;

/// One request on its way to the engine.
#[derive(Clone)]
pub struct QueuedRequest {
    pub request: Request,
    pub watch: Watch,
}

/// What is to be generated, by task.
#[derive(Debug, Clone)]
pub enum Request {
    Generate(GenerateRequest),
    Edit(EditRequest),
}

impl Request {
    /// Whether both can be denoised in one batch.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Generate(one), Self::Generate(another)) => one.agrees_with(another),
            _ => false,
        }
    }
}

/// Images and a text that says what is to become of them: of a try-on, a person and garments.
#[derive(Debug, Clone)]
pub struct EditRequest {
    /// The images that the model looks at, in the order in which the prompt counts them.
    pub images: Vec<RgbImage>,
    pub prompt: String,
    pub negative_prompt: String,
    /// Merged one after the other, in this order.
    pub loras: Vec<LoraFile>,
    pub steps: u32,
    /// True guidance, with a second look at every step, above 1.
    pub guidance_scale: f64,
    /// Which of the loaded variants of the transformer, by its name; none: the first, or the only one of a model without modes.
    pub mode: Option<String>,
    /// One an image.
    pub seeds: Vec<u64>,
    /// Multiples of 16.
    pub width_px: u32,
    pub height_px: u32,
    /// None: every step is worked out anew.
    pub step_cache: Option<StepCache>,
}

/// Images from a text.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    pub prompt: String,
    /// Looked at only where there is guidance.
    pub negative_prompt: String,
    /// Merged one after the other, in this order.
    pub loras: Vec<LoraFile>,
    pub embeddings: Vec<EmbeddingFile>,
    /// What it starts from instead of noise, in its size.
    pub start: Option<InitImage>,
    /// What ControlNets hold it to; what they add is summed.
    pub controls: Vec<Control>,
    /// Images that IP-Adapters look at beside the prompt; what they see is summed.
    pub image_prompts: Vec<ImagePrompt>,
    /// The part of the steps that is done, above 0 to 1, for the start has an image in it already; 1 without a start.
    pub strength: f64,
    /// Of the whole schedule, 1 or more.
    pub steps: u32,
    /// Classifier-free guidance (Ho and Salimans 2022) above 1; without it the UNet runs once a step.
    pub guidance_scale: f64,
    pub scheduler: Scheduler,
    pub sampling: Sampling,
    /// Which of the loaded variants of the transformer, by its name, where the model has several; none: the first.
    pub mode: Option<String>,
    /// Multiples of what one latent stands for: 8.
    pub width_px: u32,
    pub height_px: u32,
    /// One an image.
    pub seeds: Vec<u64>,
}

impl GenerateRequest {
    /// Whether both can be denoised in one batch: same steps of the same schedule and size, from the same start, under the
    /// same weights and controls. Image prompts are an image's own, as texts are.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        (self.width_px, self.height_px) == (other.width_px, other.height_px)
            && self.steps == other.steps
            && self.strength.total_cmp(&other.strength).is_eq()
            && self.scheduler == other.scheduler
            && self.sampling == other.sampling
            && self.mode == other.mode
            && self.guidance_scale.total_cmp(&other.guidance_scale).is_eq()
            && (&self.loras, &self.start, &self.controls) == (&other.loras, &other.start, &other.controls)
            && ImagePrompt::all_agree(&self.image_prompts, &other.image_prompts)
    }
}

/// What a request may ask of its denoising loop beyond scheduler, steps and guidance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Falling training timesteps in place of those of the checkpoint's spacing, one a step.
    pub timesteps: Option<Vec<u32>>,
    /// Falling noise levels before every step and after the last, in place of the checkpoint's.
    pub sigmas: Option<Vec<f64>>,
    /// How much fresh noise a step of DDIM or TCD adds, 0 none to 1 as much as DDPM.
    pub eta: f64,
    /// How far guidance is redelivered to the spread of the prediction without it, 0 to 1.
    pub guidance_rescale: f64,
    /// A model that edits images alone: how far it is led towards the image, 1 or more. Without it 1.5, as in diffusers.
    pub image_guidance_scale: Option<f64>,
    /// Last layers of the text encoders that are left out.
    pub clip_skip: u32,
    /// None: every step is worked out anew.
    pub step_cache: Option<StepCache>,
    /// SDXL: height and width of the image before it was scaled, as if it were one of its training images; none: those of the request.
    pub original_size: Option<[u32; 2]>,
    /// SDXL: top and left of what was cut out of it; none: 0.
    pub crops_coords_top_left: Option<[u32; 2]>,
    /// SDXL: height and width that it was scaled to; none: those of the request.
    pub target_size: Option<[u32; 2]>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    /// A `.safetensors` file; its content is untrusted.
    pub path: PathBuf,
    /// What its change is multiplied by; finite.
    pub scale: f64,
    pub alpha: AlphaSource,
}

impl LoraFile {
    /// A file that says its alpha itself, or needs none.
    #[must_use]
    pub fn new(path: PathBuf, scale: f64) -> Self {
        Self { path, scale, alpha: AlphaSource::File }
    }
}

/// Where the alpha of a LoRA file is: what its matrices are multiplied by is alpha/rank.
#[derive(Debug, Clone, PartialEq)]
pub enum AlphaSource {
    /// In the file: among its tensors, or in its header. Without either it is the rank, but for files that PEFT's `save_pretrained` wrote.
    File,
    /// In the request; finite.
    Given(f64),
    /// In this `adapter_config.json` of PEFT; its content is untrusted.
    Config(PathBuf),
}

#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingFile {
    /// A `.safetensors` file; its content is untrusted.
    pub path: PathBuf,
    /// The word that stands for its vectors.
    pub token: String,
}

/// An image to start from, and its mask: both of the task's size.
#[derive(Debug, Clone, PartialEq)]
pub struct InitImage {
    pub rgb: RgbImage,
    /// Where it may be changed, from 128 on.
    pub mask: Option<GrayImage>,
}

/// One generated image: `rgb` holds (height, width, 3) bytes, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub width_px: u32,
    pub height_px: u32,
    pub rgb: Vec<u8>,
    /// The seed of this image's own noise.
    pub seed: u64,
}

/// How the outside follows a generation, and stops it.
#[derive(Clone)]
pub struct Watch {
    cancel: Arc<AtomicBool>,
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
    pace: Arc<Mutex<Pace>>,
    previews: Option<Arc<PreviewListener>>,
}

/// How a generation went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// Denoising steps done.
    pub steps: u32,
    /// From the first step's end to the last one's.
    pub between: Duration,
    /// Whether the LoRAs were those that were generated with last; none where there are none.
    pub lora_cache_hit: Option<bool>,
    first: Option<Instant>,
}

/// Denoising steps done, of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub step: u32,
    pub steps: u32,
}

impl Watch {
    /// `progress` is called on the engine's thread after every denoising step and must return at once.
    pub fn new(progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        Self { cancel: Arc::default(), progress: Arc::new(progress), pace: Arc::default(), previews: None }
    }

    /// Stops the generation before its next denoising step.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    /// Reports whether the LoRAs had to be merged.
    pub fn loras_ready(&self, cache_hit: bool) {
        self.lock().lora_cache_hit = Some(cache_hit);
    }

    /// How the generation has gone so far.
    #[must_use]
    pub fn pace(&self) -> Pace {
        *self.lock()
    }

    /// A panic under the lock leaves nothing half done: these are values.
    fn lock(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports how far the generation is.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when the generation is to stop.
    pub fn step_done(&self, step: u32, steps: u32) -> Result<(), EngineError> {
        {
            let now = Instant::now();
            let mut pace = self.lock();
            pace.between = now.duration_since(*pace.first.get_or_insert(now));
            pace.steps += 1;
        }
        (self.progress)(Progress { step, steps });
        if self.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

impl EngineError {
    /// The same fault, found in the negative prompt by what reads prompts.
    fn of_negative_prompt(self) -> Self {
        match self {
            Self::Request { field: "prompt", problem } => Self::Request { field: "negative_prompt", problem },
            other => other,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model's own files are at fault: nothing can be generated.
    #[error("checkpoint {}: {problem}", path.display())]
    Checkpoint { path: PathBuf, problem: String },
    /// The request's LoRA (its place in the request) is at fault.
    #[error("lora[{index}]: {problem}")]
    Lora { index: usize, problem: String },
    /// The request's textual inversion (its place in the request) is at fault.
    #[error("embeddings[{index}]: {problem}")]
    Embedding { index: usize, problem: String },
    /// The request asks for something this model cannot do.
    #[error("{field}: {problem}")]
    Request { field: &'static str, problem: String },
    #[error("out of memory: {problem}")]
    OutOfMemory { problem: String },
    /// NaN or infinity where an image should be: says in which stage, whose fault it is where that is known, and what to do.
    #[error("{problem}")]
    NotFinite { problem: String },
    /// The device's context is broken, and with it everything that this process has on the device.
    #[error("the device failed: {problem}")]
    Fatal { problem: String },
    #[error("cancelled")]
    Cancelled,
    #[error("the engine panicked: {0}")]
    Panicked(String),
    #[error("the engine's thread is gone")]
    Gone,
    /// Images were to be classified, and nothing was loaded that could.
    #[error("no classifier was loaded next to the model")]
    NoClassifier,
    /// An image was to be enlarged, and nothing of this name was loaded that could.
    #[error("no upscaler {name} was loaded next to the model")]
    NoUpscaler { name: String },
    /// An image was to be divided into what it shows, and nothing was loaded that could.
    #[error("no segmenter was loaded next to the model")]
    NoSegmenter,
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
