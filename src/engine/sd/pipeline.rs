//! From a prompt to pictures: the stages of a painting and the loop that joins them.

use candle_core::{IndexOp, Tensor};

use super::StableDiffusion;
use super::vae::to_rgb8;
use crate::engine::noise::Noise;
use crate::engine::schedule::Schedule;
use crate::engine::{EngineError, PaintRequest, Picture, Watch};
use crate::job::task::{Generate, Scheduler};

impl StableDiffusion {
    /// Encodes the prompt, in front of it the negative one where there is one. What does not fit into the model's
    /// 77 tokens is dropped, with a warning in the log.
    ///
    /// Returns (1 or 2, tokens, hidden), f32, in the order `[negative, positive]`.
    ///
    /// # Errors
    /// When the tokenizer fails on the text, or there is no memory.
    pub fn encode_prompt(&self, prompt: &str, negative_prompt: Option<&str>) -> Result<Tensor, EngineError> {
        let texts = negative_prompt.into_iter().chain([prompt]);
        let mut ids = Vec::new();
        let mut rows = 0;
        for text in texts {
            let tokens = self.tokenizer.tokens(text)?;
            if tokens.dropped > 0 {
                tracing::warn!(dropped_tokens = tokens.dropped, "the prompt is too long, its end is not painted");
            }
            ids.extend(tokens.ids);
            rows += 1;
        }
        let length = ids.len() / rows;
        let ids = Tensor::from_vec(ids, (rows, length), &self.device)?;
        Ok(self.adapters.current().text_encoder.forward(&ids)?)
    }

    /// One look of the UNet at `latents` (N, 4, H, W), f32, already scaled for it, with guidance.
    ///
    /// `text`: [`encode_prompt`](Self::encode_prompt)'s. With a negative prompt in it, both are predicted as one batch
    /// of 2N and the result is `negative + guidance_scale·(positive − negative)` (Ho and Salimans 2022). Returns
    /// (N, 4, H, W): noise or velocity, as the checkpoint was trained.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn predict_noise(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &Tensor,
        guidance_scale: f64,
    ) -> Result<Tensor, EngineError> {
        let pictures = latents.dim(0)?;
        let rows = text.dim(0)?;
        let repeated = repeat_rows(text, pictures)?;
        let unet = &self.adapters.current().unet;
        if rows == 1 {
            return Ok(unet.forward(latents, timestep, &repeated)?);
        }
        let both = unet.forward(&Tensor::cat(&[latents, latents], 0)?, timestep, &repeated)?;
        let (negative, positive) = (both.narrow(0, 0, pictures)?, both.narrow(0, pictures, pictures)?);
        let towards = ((positive - &negative)? * guidance_scale)?;
        Ok((negative + towards)?)
    }

    /// Runs `schedule` from `latents` (N, 4, H, W), f32, of the schedule's own standard deviation, to latents that can
    /// be decoded. `noise` is drawn from by ancestral samplers alone.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] between two steps when `watch` says so.
    pub fn denoise(
        &self,
        mut latents: Tensor,
        text: &Tensor,
        guidance_scale: f64,
        schedule: &Schedule,
        noise: &mut Noise,
        watch: &Watch,
    ) -> Result<Tensor, EngineError> {
        let steps = schedule.steps.len() as u32;
        let mut previous_denoised: Option<Tensor> = None;
        for (step, done) in schedule.steps.iter().zip(1..) {
            let input = (&latents * step.input_scale)?;
            let output = self.predict_noise(&input, step.timestep, text, guidance_scale)?;
            let fresh = if step.next.noise == 0.0 { None } else { Some(noise.draw(&self.device)?) };
            let stepped = step.advance(&latents, &output, previous_denoised.as_ref(), fresh.as_ref())?;
            latents = stepped.latents;
            previous_denoised = Some(stepped.denoised);
            watch.step_done(done, steps)?;
        }
        Ok(latents)
    }

    /// `latents`: (N, 4, H, W), f32. Returns (N, 3, 8·H, 8·W), f32 around -1 to 1, for [`to_rgb8`].
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor, EngineError> {
        // One at a time: the decoder's widest layers take most of the memory there is.
        let decode = |picture: usize| self.vae.decode(&latents.narrow(0, picture, 1)?);
        let decoded = (0..latents.dim(0)?).map(decode).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&decoded, 0)?)
    }

    /// (channels, height, width) of the latents of one picture of this size.
    ///
    /// # Errors
    /// [`EngineError::Request`] when a side is no multiple of the VAE's factor.
    pub fn latent_shape(&self, width_px: u32, height_px: u32) -> Result<(usize, usize, usize), EngineError> {
        let factor = self.checkpoint.vae.pixels_per_latent();
        let side = |field, px: u32| match px as usize {
            px if px > 0 && px.is_multiple_of(factor) => Ok(px / factor),
            px => Err(EngineError::Request { field, problem: format!("must be a multiple of {factor}, got {px}") }),
        };
        let (width, height) = (side("width", width_px)?, side("height", height_px)?);
        Ok((self.checkpoint.vae.latent_channels, height, width))
    }
}

/// Everything a painting needs besides the LoRAs.
struct Plan<'a> {
    prompt: &'a str,
    /// Without it there is no guidance.
    negative_prompt: Option<&'a str>,
    guidance_scale: f64,
    schedule: Schedule,
    width_px: u32,
    height_px: u32,
    seeds: Vec<u64>,
}

pub(super) fn paint(engine: &mut StableDiffusion, request: &PaintRequest, watch: &Watch) -> Result<Vec<Picture>, EngineError> {
    let task: &Generate = &request.task;
    let guided = task.guidance_scale.get() > 1.0;
    let plan = Plan {
        prompt: task.prompt.as_str(),
        negative_prompt: guided.then(|| task.negative_prompt.as_str()),
        guidance_scale: task.guidance_scale.get(),
        schedule: Schedule::new(task.scheduler, task.steps.get(), &engine.checkpoint.schedule),
        width_px: task.size.width_px(),
        height_px: task.size.height_px(),
        seeds: (0..u64::from(task.num_images.get())).map(|picture| task.seed.get() + picture).collect(),
    };
    engine.latent_shape(plan.width_px, plan.height_px)?;
    let cache_hit = engine.use_loras(&request.loras)?;
    if !request.loras.is_empty() {
        watch.loras_ready(cache_hit);
    }
    execute(engine, &plan, watch).map_err(told_apart)
}

/// One step without guidance or LoRA at the size the checkpoint was trained on.
pub(super) fn warm_up(engine: &mut StableDiffusion) -> Result<(), EngineError> {
    let side_px = (engine.checkpoint.unet.sample_size * engine.checkpoint.vae.pixels_per_latent()) as u32;
    let plan = Plan {
        prompt: "",
        negative_prompt: None,
        guidance_scale: 1.0,
        schedule: Schedule::new(Scheduler::DpmSolverPlusPlus, 1, &engine.checkpoint.schedule),
        width_px: side_px,
        height_px: side_px,
        seeds: vec![0],
    };
    execute(engine, &plan, &Watch::new(|_| ())).map_err(told_apart)?;
    Ok(())
}

fn execute(engine: &StableDiffusion, plan: &Plan, watch: &Watch) -> Result<Vec<Picture>, EngineError> {
    let shape = engine.latent_shape(plan.width_px, plan.height_px)?;
    let text = engine.encode_prompt(plan.prompt, plan.negative_prompt)?;
    let mut noise = Noise::new(plan.seeds.iter().copied(), shape);
    let latents = (noise.draw(&engine.device)? * plan.schedule.init_noise_sigma)?;
    let latents = engine.denoise(latents, &text, plan.guidance_scale, &plan.schedule, &mut noise, watch)?;
    let (width_px, height_px) = (plan.width_px, plan.height_px);
    let decoded = engine.decode(&latents)?;
    let picture =
        |(index, seed): (usize, &u64)| Ok(Picture { width_px, height_px, rgb: to_rgb8(&decoded.i(index)?)?, seed: *seed });
    plan.seeds.iter().enumerate().map(picture).collect()
}

/// (R, T, C) to (R·count, T, C), every row `count` times in a run.
fn repeat_rows(text: &Tensor, count: usize) -> candle_core::Result<Tensor> {
    let (rows, tokens, channels) = text.dims3()?;
    text.unsqueeze(1)?.repeat((1, count, 1, 1))?.reshape((rows * count, tokens, channels))
}

/// Candle tells a device without memory from other faults only in its message.
fn told_apart(error: EngineError) -> EngineError {
    match error {
        EngineError::Candle(error) if error.to_string().to_lowercase().contains("out_of_memory") => {
            EngineError::OutOfMemory { problem: format!("{error}; ask for a smaller size or fewer images") }
        }
        other => other,
    }
}
