//! The loop of a flow: from noise to latents, and from latents to images.

use candle_core::{IndexOp, Tensor};

use super::engine::FlowEngine;
use super::family::Family;
use super::requests::Wanted;
use super::start::{Denoising, Given};
use crate::finite::is_finite;
use crate::noise::Noise;
use crate::pixels::to_rgb8;
use crate::step_cache::FirstBlockCache;
use crate::{EngineError, Image, Watch};

impl<F: Family> FlowEngine<F> {
    /// Denoises every image of `request` next to what it is given; they go from step to step together. Returns their latents, (1, C, H, W) each, f32.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when `watch` says so between two steps; else what a request or the device is at fault for.
    pub(super) fn denoise(
        &self,
        request: Wanted<'_>,
        text: &F::Text,
        Given { grid, references, start }: &Given,
        (watch, is_banded): (&Watch, bool),
    ) -> Result<Vec<Tensor>, EngineError> {
        let complete = self.schedule(request.steps, *grid);
        let schedule = match request.start {
            Some((_, strength)) => complete.from_image(strength),
            None => complete,
        };
        let steps = schedule.steps();
        let context = self.adapters.current().context(text, *grid, references)?;
        let noise = Noise::new(request.seeds.iter().copied(), self.checkpoint.vae.latents(*grid));
        let mut images = Denoising::begin(noise, &schedule, start.as_ref(), &self.device)?;
        let mut caches = FirstBlockCache::for_each(request.step_cache, images.latents.len())?;
        for (index, timestep) in schedule.timesteps().into_iter().enumerate() {
            let length = f64::from(schedule.sigmas[index + 1]) - f64::from(schedule.sigmas[index]);
            let waves = self.adapters.current().waves(timestep)?;
            let done = index as u32 + 1;
            let wants_preview = watch.wants_preview(done, steps);
            for (place, (latents, cache)) in images.latents.iter_mut().zip(&mut caches).enumerate() {
                let velocity = match cache {
                    None => self.velocity(latents, &waves, &context)?,
                    Some(cache) => self.cached_velocity(latents, &waves, &context, cache)?,
                };
                *latents = (&*latents + (&velocity * length)?)?;
                if wants_preview && place == 0 {
                    let image = schedule.predicted_image(index + 1, latents, &velocity);
                    self.previewer.show(watch, (done, steps), image, |latents| self.decode(latents, is_banded));
                }
            }
            images.restore(&schedule, done)?;
            if done == steps {
                // Until here a GPU had only been sent its work: without this its last steps would count as decoding.
                self.device.synchronize()?;
            }
            watch.step_done(done, steps)?;
        }
        Ok(images.latents)
    }

    /// The images of these latents, of one text.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`] names the first stage that gave NaN or infinity, and why where that is known.
    pub(super) fn develop(
        &self,
        request: Wanted<'_>,
        text: &F::Text,
        latents: &[Tensor],
        is_banded: bool,
    ) -> Result<Vec<Image>, EngineError> {
        let images = latents.iter().zip(request.seeds).map(|(latents, seed)| {
            let decoded = self.decode(latents, is_banded)?;
            if !is_finite(&decoded)? {
                return Err(self.not_finite(text, latents)?);
            }
            let rgb = to_rgb8(&decoded.i(0)?)?;
            Ok(Image { width_px: request.width_px, height_px: request.height_px, rgb, seed: *seed })
        });
        images.collect()
    }

    /// The error of an image that is not finite: the first stage that gave NaN or infinity, and what to do.
    fn not_finite(&self, text: &F::Text, latents: &Tensor) -> Result<EngineError, EngineError> {
        let finite = F::values(text).into_iter().map(is_finite).collect::<candle_core::Result<Vec<_>>>()?;
        // The order in which they run: what comes later only passes it on.
        let (stage, why) = if finite.contains(&false) {
            ("text encoder", "download the model again, or convert text_encoder/ again".to_owned())
        } else if !is_finite(latents)? {
            ("transformer", self.adapters.why_not_finite(&["transformer."])?)
        } else {
            ("VAE's decoder", "download the model again, or convert vae/ again".to_owned())
        };
        Ok(self.not_finite_in(stage, &why))
    }

    /// The error of `stage`, which gave NaN or infinity.
    pub(super) fn not_finite_in(&self, stage: &str, why: &str) -> EngineError {
        let model = self.checkpoint.directory.file_name().unwrap_or_default().to_string_lossy();
        let dtype = self.adapters.weights().dtype().as_str();
        let problem = format!("the {stage} of model {model} gave NaN or infinity; it computes in {dtype}; {why}");
        EngineError::NotFinite { problem }
    }
}
