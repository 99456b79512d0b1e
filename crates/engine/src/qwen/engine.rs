//! Qwen-Image's models as an engine: the words of a request, and its images, to generated ones, with the weights of the mode that it asks for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};

use super::checkpoint::{ImageCheckpoint, Pipeline};
use super::pipeline::Edit;
use super::precision::Precision;
use super::sizes::Areas;
use super::text::TextEncoder;
use super::{QwenImage, Variant};
use crate::device_errors::{advise_smaller, classify_memory_error};
use crate::graphs::{GraphCounts, Graphs};
use crate::kept_encoder::KeptEncoder;
use crate::resample::{Filter, resize};
use crate::unread::check_unread;
use crate::{EditRequest, Engine, EngineError, GenerateRequest, Generated, QueuedRequest, Request, Watch};

/// What stands for a negative prompt that says nothing: the model's own examples have a blank.
const EMPTY_PROMPT: &str = " ";
/// Sides of what the warm-up generates.
const WARM_UP_PX: u32 = 64;

/// How a checkpoint is loaded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the checkpoint must be of.
    pub pipeline: Pipeline,
    /// The weights of each mode that can be asked for, by its name.
    pub modes: Vec<(String, Variant)>,
    pub areas: Areas,
    /// Bytes of the device that may be used; where text encoder and transformers do not fit into them together, the encoder is
    /// read again for every job.
    pub memory_budget: Option<u64>,
    /// As of [`sd::settings::Settings`](crate::sd::settings::Settings::graphs).
    pub graphs: bool,
    /// Whether what one job's images were encoded to is forgotten before the next.
    pub forget_between_jobs: bool,
}

/// A loaded checkpoint with all that a generation needs.
pub struct QwenEngine {
    directory: PathBuf,
    settings: Settings,
    precision: Precision,
    device: Device,
    encoder: KeptEncoder<TextEncoder>,
    modes: Vec<(String, QwenImage)>,
    /// Of the looks of all modes.
    graphs: Arc<Graphs>,
}

/// The hidden states of a request's words.
struct TextConditioning {
    positive: Tensor,
    negative: Option<Tensor>,
}

impl QwenEngine {
    /// Loads text encoder, autoencoder and the transformer of every mode out of `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] names the file and what is missing or not supported, [`EngineError::Lora`] a LoRA's fault.
    pub fn load(directory: &Path, settings: Settings, precision: Precision, device: Device) -> Result<Self, EngineError> {
        ImageCheckpoint::read(directory)?.check_pipeline(settings.pipeline)?;
        let encoder = TextEncoder::load(directory, condition_px(&settings), precision, device.clone())?;
        let mut modes: Vec<(String, QwenImage)> = Vec::with_capacity(settings.modes.len());
        for (mode, variant) in &settings.modes {
            let model = match modes.first() {
                Some((_, first)) => first.low_rank(variant)?,
                None => QwenImage::load(directory, variant, precision, device.clone())?.with_areas(settings.areas),
            };
            modes.push((mode.clone(), model));
        }
        let resident = encoder.bytes() + modes.iter().map(|(_, model)| model.bytes()).sum::<u64>();
        let encoder = KeptEncoder::new(encoder, resident, settings.memory_budget);
        let room_bytes = settings.memory_budget.map(|bytes| bytes.saturating_sub(resident));
        let graphs = Arc::new(Graphs::new(settings.graphs, &device, room_bytes));
        let modes = modes.into_iter().map(|(mode, model)| (mode, model.with_graphs(Arc::clone(&graphs)))).collect();
        Ok(Self { directory: directory.to_owned(), settings, precision, device, encoder, modes, graphs })
    }

    /// Whether the text encoder stays in memory between jobs.
    #[must_use]
    pub fn keeps_encoder(&self) -> bool {
        self.encoder.stays()
    }

    /// How many looks the GPU was told once, and repeated.
    #[must_use]
    pub fn graph_counts(&self) -> GraphCounts {
        self.graphs.counts()
    }

    /// One request; where there was no memory for it once more with nothing else in the way.
    fn edit(&mut self, request: &EditRequest, watch: &Watch) -> Generated {
        let generated = self.attempt(request, watch).map_err(classify_memory_error);
        let generated = match generated {
            Err(EngineError::OutOfMemory { problem }) => {
                tracing::warn!(%problem, "no memory: generating again without caches and text encoder");
                self.forget();
                self.graphs.forget();
                drop(self.encoder.take());
                self.attempt(request, watch).map_err(classify_memory_error).map_err(advise_smaller)
            }
            generated => generated,
        };
        if self.settings.forget_between_jobs {
            self.forget();
        }
        generated
    }

    fn attempt(&mut self, request: &EditRequest, watch: &Watch) -> Generated {
        if !request.loras.is_empty() {
            return Err(EngineError::Request { field: "lora", problem: "is not read by this model: leave it out".into() });
        }
        let asked = request.mode.as_deref();
        let place = self.modes.iter().position(|(mode, _)| asked.is_none_or(|asked| mode == asked));
        let place = place.ok_or_else(|| self.not_loaded(asked.unwrap_or("none")))?;
        let TextConditioning { positive, negative } = self.encode_words(request)?;
        if watch.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let (_, model) = &mut self.modes[place];
        let scaled = request.images.iter().map(|image| {
            let (width_px, height_px) = model.reference_size(image.width(), image.height());
            resize(image, width_px, height_px, Filter::Lanczos)
        });
        let references: Vec<RgbImage> = scaled.collect();
        let EditRequest { guidance_scale, steps, step_cache, width_px, height_px, .. } = *request;
        let seeds = request.seeds.clone();
        let edit = Edit { positive, negative, guidance_scale, steps, step_cache, seeds, width_px, height_px };
        model.generate(&edit, &references, watch)
    }

    fn encode_words(&mut self, request: &EditRequest) -> Result<TextConditioning, EngineError> {
        let mut encoder = self.encoder.take().map_or_else(|| self.read_encoder(), Ok)?;
        let words = words_of(&mut encoder, request);
        self.encoder.keep(encoder);
        words
    }

    fn read_encoder(&self) -> Result<TextEncoder, EngineError> {
        TextEncoder::load(&self.directory, condition_px(&self.settings), self.precision, self.device.clone())
    }

    fn not_loaded(&self, mode: &str) -> EngineError {
        let loaded: Vec<&str> = self.modes.iter().map(|(mode, _)| mode.as_str()).collect();
        let problem = format!("must be {}, what is loaded, got {mode}", loaded.join(", "));
        EngineError::Request { field: "mode", problem }
    }

    fn forget(&mut self) {
        if let Some(encoder) = self.encoder.loaded() {
            encoder.forget();
        }
        self.modes.iter_mut().for_each(|(_, model)| model.forget());
    }
}

/// A request from text alone is an edit of no images.
fn text_as_edit(request: &GenerateRequest) -> Result<EditRequest, EngineError> {
    check_unread(request, false)?;
    Ok(EditRequest {
        images: Vec::new(),
        prompt: request.prompt.clone(),
        negative_prompt: request.negative_prompt.clone(),
        loras: request.loras.clone(),
        steps: request.steps,
        guidance_scale: request.guidance_scale,
        mode: request.mode.clone(),
        seeds: request.seeds.clone(),
        width_px: request.width_px,
        height_px: request.height_px,
        step_cache: request.sampling.step_cache,
    })
}

fn condition_px(settings: &Settings) -> Option<u32> {
    Some(settings.areas.condition_px).filter(|_| settings.pipeline == Pipeline::Edit)
}

fn words_of(encoder: &mut TextEncoder, request: &EditRequest) -> Result<TextConditioning, EngineError> {
    let positive = encoder.encode(&request.prompt, &request.images)?;
    let said = Some(request.negative_prompt.as_str()).filter(|prompt| !prompt.trim().is_empty()).unwrap_or(EMPTY_PROMPT);
    let guided = request.guidance_scale > 1.0;
    let negative = guided.then(|| encoder.encode(said, &request.images)).transpose();
    let negative = negative.map_err(EngineError::of_negative_prompt)?;
    Ok(TextConditioning { positive, negative })
}

impl Engine for QwenEngine {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        let grey = RgbImage::from_pixel(WARM_UP_PX, WARM_UP_PX, Rgb([128; 3]));
        let modes: Vec<String> = self.modes.iter().map(|(mode, _)| mode.clone()).collect();
        for mode in modes {
            let images = if self.settings.pipeline == Pipeline::Edit { vec![grey.clone(), grey.clone()] } else { Vec::new() };
            let request = EditRequest {
                images,
                prompt: "warm-up".into(),
                negative_prompt: String::new(),
                loras: Vec::new(),
                steps: 1,
                guidance_scale: 1.0,
                mode: Some(mode),
                seeds: vec![0],
                width_px: WARM_UP_PX,
                height_px: WARM_UP_PX,
                step_cache: None,
            };
            self.edit(&request, &Watch::new(|_| ()))?;
        }
        Ok(())
    }

    fn generate_together(&mut self, queued_requests: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
        let refused = |problem: &str| Err(EngineError::Request { field: "task", problem: problem.into() });
        let results = queued_requests.iter().map(|queued| match (&queued.request, self.settings.pipeline) {
            (Request::Edit(request), Pipeline::Edit) => self.edit(request, &queued.watch),
            (Request::Generate(request), Pipeline::Text) => {
                let request = text_as_edit(request)?;
                self.edit(&request, &queued.watch)
            }
            (Request::Generate(_), Pipeline::Edit) => {
                refused("must be tryon or edit: this model generates over images, not from text alone")
            }
            (Request::Edit(_), Pipeline::Text) => refused("must be generate: this model generates from text alone"),
        });
        Ok(results.collect())
    }
}
