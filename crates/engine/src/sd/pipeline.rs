//! From a prompt to images: the stages of a generation and the loop that joins them.

use candle_core::{IndexOp, Tensor};
use image::{GrayImage, Luma, Rgb, RgbImage};

use super::StableDiffusion;
use super::conditioning::Conditioning;
use super::config::ExtraInput;
use super::control::PlannedControl;
use super::guidance::Guidance;
use super::latent_batch::LatentBatch;
use super::memory::{Work, twice};
use super::prediction::{Predictor, Seen};
use super::settings::Defaults;
use super::sizes::Sizes;
use super::start::{Start, check_start, pipeline_of};
use super::steering::Steering;
use super::text::Encoding;
use super::tiling::Tiling;
use crate::device_errors::classify_memory_error;
use crate::pixels::{sides, to_rgb8};
use crate::schedule::config::Pipeline;
use crate::schedule::scheduler::{Sampler, Scheduler};
use crate::schedule::{self, Schedule};
use crate::steering::ImagePrompt;
use crate::{
    EmbeddingFile, Engine, EngineError, GenerateRequest, Generated, Image, InitImage, QueuedRequest, Request, Sampling, Watch,
};

/// diffusers' default of `image_guidance_scale`.
const IMAGE_GUIDANCE_SCALE: f64 = 1.5;

impl StableDiffusion {
    /// Runs the schedule of `plan` over the latent batch. A request whose watch says so leaves it between two steps.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    fn denoise(
        &self,
        latent_batch: &mut LatentBatch,
        plan: &Plan,
        tiling: Tiling,
        watches: &[&Watch],
    ) -> Result<(), EngineError> {
        let schedule = &plan.schedule;
        let steps = schedule.steps.len() as u32;
        let timesteps: Vec<f64> = schedule.steps.iter().map(|step| step.timestep).collect();
        let mut last_predictor: Option<Predictor<'_>> = None;
        for (step, done) in schedule.steps.iter().zip(1..) {
            let index = done as usize - 1;
            // Gone before there is another: two would be twice the memory.
            let last = last_predictor.take().filter(|last| last.is_for(latent_batch.owners.len(), index));
            let predictor = if let Some(last) = last {
                last
            } else {
                let looks = (plan.guidance, plan.cache_interval.is_some());
                self.predictor(&latent_batch.text, (&timesteps, index), looks, (tiling, &plan.steering))?
            };
            let is_shallow = plan.cache_interval.is_some_and(|interval| !index.is_multiple_of(interval as usize));
            let deep = is_shallow.then_some(&*latent_batch.deep);
            let Seen { output, deep } = predictor.predict(&latent_batch.input(step.input_scale)?, index, deep)?;
            latent_batch.deep = deep;
            self.preview(latent_batch, &output, (schedule, index), watches, tiling);
            last_predictor = Some(predictor);
            let fresh = if step.next.noise == 0.0 { None } else { Some(latent_batch.noise.draw(&self.device)?) };
            let stepped = step.advance(&latent_batch.latents, &output, &latent_batch.history, fresh.as_ref())?;
            latent_batch.latents = stepped.latents;
            latent_batch.history = stepped.history;
            latent_batch.requeue(schedule, done as usize)?;
            if done == steps {
                // Until here a GPU had only been sent its work: without this its last steps would count as decoding.
                self.device.synchronize()?;
            }
            let mut on_it = latent_batch.owners.clone();
            on_it.dedup();
            on_it.retain(|queued| watches[*queued].step_done(done, steps).is_err());
            latent_batch.remove(&on_it)?;
            if latent_batch.owners.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// `latents`: (N, 4, H, W), f32. Returns (N, 3, 8·H, 8·W), f32 around -1 to 1, for [`to_rgb8`].
    ///
    /// In bands it is the same image in a third of the memory. In tiles it is another one, for each tile is normalized by itself, but
    /// without seams and in no more memory than a tile takes.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn decode(&self, latents: &Tensor, tiling: Tiling) -> Result<Tensor, EngineError> {
        one_at_a_time(latents, |latents| match tiling {
            Tiling { tile: Some(side), .. } => self.vae.decode_in_tiles(latents, side),
            Tiling { banded: true, .. } => self.vae.decode_in_bands(latents),
            Tiling { .. } => self.vae.decode(latents),
        })
    }

    fn schedule(&self, plan: &schedule::Plan<'_>, pipeline: Pipeline) -> Result<Schedule, EngineError> {
        Schedule::planned(plan, &self.checkpoint.schedule_for(pipeline))
            .map_err(|error| EngineError::Request { field: error.field(), problem: error.to_string() })
    }

    /// Whether a job with this scale looks at its negative prompt: a model that was distilled over the scale never does.
    fn is_guided(&self, guidance_scale: f64) -> bool {
        guidance_scale > 1.0 && self.checkpoint.unet.time_cond_proj_dim.is_none()
    }

    /// The sizes that SDXL is told; a model that is not refuses them.
    fn sizes(&self, request: &GenerateRequest) -> Result<Sizes, EngineError> {
        let Sampling { original_size, crops_coords_top_left, target_size, .. } = &request.sampling;
        let asked =
            [("original_size", original_size), ("crops_coords_top_left", crops_coords_top_left), ("target_size", target_size)];
        if let Some((field, _)) = asked.iter().find(|(_, asked)| asked.is_some() && !self.checkpoint.is_xl()) {
            let problem = "means something only to Stable Diffusion XL, which this model is not: leave it out".into();
            return Err(EngineError::Request { field, problem });
        }
        let default_value = Sizes::of(request.width_px, request.height_px);
        Ok(Sizes {
            original: original_size.unwrap_or(default_value.original),
            crops_top_left: crops_coords_top_left.unwrap_or(default_value.crops_top_left),
            target: target_size.unwrap_or(default_value.target),
        })
    }

    /// (channels, height, width) of the latents of one image of this size.
    ///
    /// # Errors
    /// [`EngineError::Request`] when a side is no multiple of the VAE's factor.
    pub fn latent_shape(&self, width_px: u32, height_px: u32) -> Result<(usize, usize, usize), EngineError> {
        let [width, height] = sides(width_px, height_px, self.checkpoint.vae.pixels_per_latent())?;
        Ok((self.checkpoint.vae.latent_channels, height, width))
    }
}

impl Engine for StableDiffusion {
    fn warm_up(&mut self) -> Result<(), EngineError> {
        warm_up(self)
    }

    fn generate_together(&mut self, queued_requests: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
        generate(self, queued_requests)
    }
}

/// The decoder's widest layers take most of the memory there is.
fn one_at_a_time(latents: &Tensor, decode: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Tensor, EngineError> {
    let decoded = (0..latents.dim(0)?).map(|image| decode(&latents.narrow(0, image, 1)?));
    Ok(Tensor::cat(&decoded.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
}

/// What the images of a batch have in common, besides the LoRAs.
struct Plan {
    guided: bool,
    guidance: Guidance,
    encoding: Encoding,
    schedule: Schedule,
    /// So many looks of the UNet, one is complete; none: all are.
    cache_interval: Option<u32>,
    start: Option<Start>,
    steering: Steering,
    width_px: u32,
    height_px: u32,
}

/// What one request adds to it.
struct Part<'a> {
    prompt: &'a str,
    /// Looked at only where there is guidance.
    negative_prompt: &'a str,
    embeddings: &'a [EmbeddingFile],
    image_prompts: &'a [ImagePrompt],
    seeds: Vec<u64>,
    watch: &'a Watch,
}

fn generate(engine: &mut StableDiffusion, queued_requests: &[QueuedRequest]) -> Result<Vec<Generated>, EngineError> {
    let requests = queued_requests.iter().map(|queued| generate_request(&queued.request)).collect::<Result<Vec<_>, _>>()?;
    let Some(request) = requests.first() else { return Ok(Vec::new()) };
    let sampling = &request.sampling;
    let extra_input = engine.checkpoint.unet.extra_input();
    let schedule = schedule::Plan {
        strength: request.start.is_some().then_some(request.strength).filter(|_| extra_input != ExtraInput::Image),
        eta: sampling.eta,
        timesteps: sampling.timesteps.as_deref(),
        sigmas: sampling.sigmas.as_deref(),
        ..schedule::Plan::new(request.scheduler, request.steps)
    };
    let mut plan = Plan {
        guided: engine.is_guided(request.guidance_scale),
        guidance: Guidance {
            scale: request.guidance_scale,
            rescale: sampling.guidance_rescale,
            image_scale: sampling.image_guidance_scale.unwrap_or(IMAGE_GUIDANCE_SCALE),
        },
        encoding: Encoding { clip_skip: sampling.clip_skip, sizes: engine.sizes(request)? },
        schedule: engine.schedule(&schedule, pipeline_of(request, extra_input))?,
        cache_interval: sampling.step_cache.map(|cache| cache.interval(!request.controls.is_empty())).transpose()?,
        start: None,
        steering: Steering::default(),
        width_px: request.width_px,
        height_px: request.height_px,
    };
    engine.latent_shape(plan.width_px, plan.height_px)?;
    check_start(request, extra_input)?;
    if let Some(image) = &request.start {
        plan.start = Some(engine.start(image, (plan.width_px, plan.height_px), schedule.strength == Some(1.0))?);
    }
    let steps = plan.schedule.steps.len();
    plan.steering.controls = engine.controls(&request.controls, (plan.width_px, plan.height_px), steps)?;
    for request in &requests {
        // Those that agree name the same, each with images of its own.
        plan.steering.image_prompts = engine.planned_prompts(&request.image_prompts)?;
    }
    let cache_hit = engine.use_loras(&request.loras)?;
    if !request.loras.is_empty() {
        for queued in queued_requests {
            queued.watch.loras_ready(cache_hit);
        }
    }
    let parts: Vec<Part<'_>> =
        requests.iter().zip(queued_requests).map(|(request, queued)| Part::new(request, &queued.watch)).collect();
    in_memory(engine, &plan, &parts)
}

/// Generates in as many pieces as memory asks for.
fn in_memory(engine: &StableDiffusion, plan: &Plan, parts: &[Part<'_>]) -> Result<Vec<Generated>, EngineError> {
    let images: usize = parts.iter().map(|part| part.seeds.len()).sum();
    let predictions = match engine.checkpoint.unet.extra_input() {
        _ if !plan.guided => 1,
        ExtraInput::Image => 3,
        ExtraInput::Nothing | ExtraInput::MaskAndImage => 2,
    };
    let rows = predictions * images;
    // One by one, so that a prompt is the same values whatever its neighbours are.
    let texts = parts.iter().map(|part| {
        let inversions = engine.read_embeddings(part.embeddings)?;
        let negative_prompt = plan.guided.then_some(part.negative_prompt);
        let text = engine.encode_prompt_with(part.prompt, negative_prompt, &inversions, plan.encoding);
        let text = text.and_then(|text| engine.with_images(text, part.image_prompts, &plan.steering.image_prompts));
        text.map_err(classify_memory_error)
    });
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    let lengths = texts.iter().map(Conditioning::lengths).collect::<candle_core::Result<Vec<_>>>()?;
    let tokens = lengths.into_iter().flatten().flatten().max().unwrap_or_default();
    let image_tokens =
        parts.first().map_or(0, |part| engine.image_token_count(part.image_prompts, &plan.steering.image_prompts));
    let controls_ahead = engine.controls_ahead(&plan.steering.controls);
    let work = Work { width_px: plan.width_px, height_px: plan.height_px, rows, tokens, image_tokens, controls_ahead };
    let memory_estimate = engine.memory_estimate;
    let free = engine.memory_budget.map(|bytes| engine.graphs.remaining(bytes.saturating_sub(engine.resident_bytes)));
    let first = free.map_or(Ok(Tiling::default()), |bytes| memory_estimate.within(bytes, work))?;
    let generated = twice(first, memory_estimate.smallest(), |tiling| {
        engine.graphs.making_room(|| execute(engine, plan, (parts, &texts), tiling).map_err(classify_memory_error))
    });
    generated.map_err(|error| match error {
        EngineError::OutOfMemory { problem } => {
            let advice = memory_estimate.advice(work, free);
            EngineError::OutOfMemory { problem: format!("{problem}, also in pieces; {advice}") }
        }
        other => other,
    })
}

/// The request, if it is one for a model that generates from text.
fn generate_request(request: &Request) -> Result<&GenerateRequest, EngineError> {
    match request {
        Request::Generate(GenerateRequest { mode: Some(_), .. }) => {
            Err(EngineError::Request { field: "mode", problem: "this model has no modes: leave it out".into() })
        }
        Request::Generate(request) => Ok(request),
        Request::Edit(_) => {
            Err(EngineError::Request { field: "task", problem: "must be generate: this model generates from text".into() })
        }
    }
}

impl<'a> Part<'a> {
    fn new(request: &'a GenerateRequest, watch: &'a Watch) -> Self {
        Self {
            prompt: &request.prompt,
            negative_prompt: &request.negative_prompt,
            embeddings: &request.embeddings,
            image_prompts: &request.image_prompts,
            seeds: request.seeds.clone(),
            watch,
        }
    }
}

/// One step without LoRAs of what jobs usually ask for, one with each ControlNet, and one with each IP-Adapter.
fn warm_up(engine: &StableDiffusion) -> Result<(), EngineError> {
    let Defaults { width_px, height_px, guidance_scale } = engine.defaults;
    let nets = 1 + engine.controlnets.len();
    let controls = engine.each_control_once((width_px, height_px), nets)?;
    warm_up_with(engine, nets, (controls, &[]), (width_px, height_px, guidance_scale))?;
    engine.each_prompt_once().iter().try_for_each(|prompt| {
        warm_up_with(engine, 1, (Vec::new(), std::slice::from_ref(prompt)), (width_px, height_px, guidance_scale))
    })
}

fn warm_up_with(
    engine: &StableDiffusion,
    steps: usize,
    (controls, image_prompts): (Vec<PlannedControl>, &[ImagePrompt]),
    (width_px, height_px, guidance_scale): (u32, u32, f64),
) -> Result<(), EngineError> {
    let schedule = schedule::Plan::new(Scheduler::plain(Sampler::DpmSolverPlusPlus), steps as u32);
    let mut plan = Plan {
        guided: engine.is_guided(guidance_scale),
        guidance: guidance_scale.into(),
        encoding: Encoding { clip_skip: 0, sizes: Sizes::of(width_px, height_px) },
        schedule: engine.schedule(&schedule, Pipeline::TextToImage)?,
        cache_interval: None,
        start: None,
        steering: Steering { controls, image_prompts: engine.planned_prompts(image_prompts)? },
        width_px,
        height_px,
    };
    let extra_input = engine.checkpoint.unet.extra_input();
    if extra_input != ExtraInput::Nothing {
        let rgb = RgbImage::from_pixel(width_px, height_px, Rgb([128; 3]));
        let masked = extra_input == ExtraInput::MaskAndImage;
        let mask = masked.then(|| GrayImage::from_pixel(width_px, height_px, Luma([255])));
        plan.start = Some(engine.start(&InitImage { rgb, mask }, (width_px, height_px), true)?);
    }
    let watch = Watch::new(|_| ());
    let part = Part { prompt: "", negative_prompt: "", embeddings: &[], image_prompts, seeds: vec![0], watch: &watch };
    // What is not finite is a request's own error.
    in_memory(engine, &plan, &[part])?.into_iter().try_for_each(|generated| generated.map(drop))
}

fn execute(
    engine: &StableDiffusion,
    plan: &Plan,
    (parts, texts): (&[Part<'_>], &[Conditioning]),
    tiling: Tiling,
) -> Result<Vec<Generated>, EngineError> {
    let shape = engine.latent_shape(plan.width_px, plan.height_px)?;
    let mut generated = Vec::new();
    for together in of_one_length(texts)? {
        let texts: Vec<Conditioning> = together.iter().map(|part| texts[*part].clone()).collect();
        let seeds: Vec<Vec<u64>> = together.iter().map(|part| parts[*part].seeds.clone()).collect();
        let watches: Vec<&Watch> = together.iter().map(|part| parts[*part].watch).collect();
        let mut latent_batch = LatentBatch::new(&texts, &seeds, shape, &engine.device)?;
        latent_batch.begin(&plan.schedule, plan.start.as_ref())?;
        engine.denoise(&mut latent_batch, plan, tiling, &watches)?;
        for (queued, (part, seeds)) in together.into_iter().zip(&seeds).enumerate() {
            let images = develop(engine, plan, tiling, &latent_batch, queued, (seeds, &texts[queued]))?;
            generated.push((part, images));
        }
    }
    generated.sort_by_key(|(part, _)| *part);
    Ok(generated.into_iter().map(|(_, generated)| generated).collect())
}

/// The places of texts that can share a batch: a longer one takes more tokens, and padding would change the others' images.
fn of_one_length(texts: &[Conditioning]) -> Result<Vec<Vec<usize>>, EngineError> {
    let mut lengths: Vec<([Option<usize>; 2], Vec<usize>)> = Vec::new();
    for (place, text) in texts.iter().enumerate() {
        let length = text.lengths()?;
        match lengths.iter_mut().find(|(of, _)| *of == length) {
            Some((_, places)) => places.push(place),
            None => lengths.push((length, vec![place])),
        }
    }
    Ok(lengths.into_iter().map(|(_, places)| places).collect())
}

/// The images of one request out of its latents. An image that is not finite is that request's error alone.
fn develop(
    engine: &StableDiffusion,
    plan: &Plan,
    tiling: Tiling,
    latent_batch: &LatentBatch,
    queued: usize,
    (seeds, text): (&[u64], &Conditioning),
) -> Result<Generated, EngineError> {
    let Some(latents) = latent_batch.latents_of(queued)? else { return Ok(Err(EngineError::Cancelled)) };
    let width_px = plan.width_px;
    let height_px = plan.height_px;
    let mut images = Vec::with_capacity(seeds.len());
    for (index, seed) in seeds.iter().enumerate() {
        match engine.decode_finite(&latents.narrow(0, index, 1)?, text, (plan.start.as_ref(), &plan.steering), tiling) {
            Ok(decoded) => images.push(Image { width_px, height_px, rgb: to_rgb8(&decoded.i(0)?)?, seed: *seed }),
            Err(error @ EngineError::NotFinite { .. }) => return Ok(Err(error)),
            Err(error) => return Err(error),
        }
    }
    Ok(Ok(images))
}
