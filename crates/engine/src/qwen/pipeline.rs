//! From hidden states to images: the stages of a generation and the loop that joins them.

use std::sync::Arc;

use candle_core::{DType, IndexOp, Tensor, bail};
use image::RgbImage;

use super::QwenImage;
use super::fingerprint::fingerprint;
use super::guidance::guided;
use super::modulation::TimestepConditioning;
use super::packing::{Grid, pack, unpack};
use super::references::Reference;
use super::rope::Rope;
use super::sizes::fitting;
use super::transformer::Prediction;
use crate::device::keeping_uploads;
use crate::finite::is_finite;
use crate::graphs::Kind;
use crate::noise::Noise;
use crate::pixels::{to_pixels, to_rgb8};
use crate::schedule::flow::FlowSchedule;
use crate::step_cache::{FirstBlockCache, StepCache};
use crate::{EngineError, Image, Watch};

/// One image, or several that only differ in their noise.
pub struct Edit {
    /// The text encoder's hidden states: (1, tokens, joint).
    pub positive: Tensor,
    /// Those of the negative prompt; looked at only where `guidance_scale` is above 1.
    pub negative: Option<Tensor>,
    pub guidance_scale: f64,
    pub steps: u32,
    /// None: every step is worked out anew.
    pub step_cache: Option<StepCache>,
    /// One an image.
    pub seeds: Vec<u64>,
    /// Multiples of twice what one latent stands for: 16.
    pub width_px: u32,
    pub height_px: u32,
}

/// A text with the angles of its tokens and the images'.
struct Prompt {
    text: Tensor,
    rope: Rope,
}

impl QwenImage {
    /// The size in which an image of this size is a reference.
    #[must_use]
    pub fn reference_size(&self, width_px: u32, height_px: u32) -> (u32, u32) {
        fitting(self.areas.reference_px, width_px, height_px)
    }

    /// `image`: in the size that [`Self::reference_size`] gives. Images seen last are not encoded again.
    ///
    /// # Errors
    /// [`EngineError::Request`] when its sides are no multiples of 16, or there is no memory.
    pub fn encode_reference(&mut self, image: &RgbImage) -> Result<Reference, EngineError> {
        let grid = self.grid(image.width(), image.height())?;
        let vae = &self.vae;
        let device = &self.device;
        self.references.of(fingerprint(image), || {
            let pixels = to_pixels(image.as_raw(), image.width() as usize, image.height() as usize, device)?;
            Ok(Reference { tokens: pack(&vae.encode(&pixels)?)?, grid })
        })
    }

    /// The noise levels for an output of this size.
    #[must_use]
    pub fn schedule(&self, steps: u32, output: Grid) -> FlowSchedule {
        let config = &self.checkpoint.schedule;
        let distilled = config.lightning();
        FlowSchedule::new(if self.distilled { &distilled } else { config }, steps, output.tokens())
    }

    /// An image's sides in tokens.
    ///
    /// # Errors
    /// [`EngineError::Request`] when a side is no multiple of a token's.
    pub fn grid(&self, width_px: u32, height_px: u32) -> Result<Grid, EngineError> {
        Grid::of_image(width_px, height_px, 2 * self.checkpoint.vae.pixels_per_latent())
    }

    /// The noise of each image, (1, tokens, 4·channels), f32: what torch's CPU generator gives in f32.
    ///
    /// A pipeline in bf16 draws other values, because torch draws in the format it is asked for.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn noise(&self, seeds: &[u64], output: Grid) -> Result<Vec<Tensor>, EngineError> {
        let shape = (self.checkpoint.vae.z_dim, 2 * output.height, 2 * output.width);
        let drawn = Noise::new(seeds.iter().copied(), shape).draw(&self.device)?;
        (0..seeds.len()).map(|image| Ok(pack(&drawn.narrow(0, image, 1)?)?)).collect()
    }

    /// What the transformer gets at each of these timesteps.
    ///
    /// # Errors
    /// When the weights cannot be read, or there is no memory.
    pub fn conditionings(&mut self, timesteps: &[f32]) -> Result<Arc<Vec<TimestepConditioning>>, EngineError> {
        self.conditionings.of(timesteps, &self.checkpoint.transformer, &self.files)
    }

    /// The transformer's look at `tokens` (1, T, 4·channels), the output's before the references', with `text` (1, S, joint).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn predict(
        &self,
        tokens: &Tensor,
        text: &Tensor,
        grids: &[Grid],
        conditioning: &TimestepConditioning,
    ) -> Result<Prediction, EngineError> {
        let rope = Rope::new(&self.checkpoint.transformer, grids, text.dim(1)?, &self.device)?;
        let output = grids.first().map_or(0, |grid| grid.tokens());
        let compute = self.precision.compute;
        Ok(self.transformer.predict(&tokens.to_dtype(compute)?, &text.to_dtype(compute)?, output, conditioning, &rope)?)
    }

    /// Denoises every image of `edit`; they go from step to step together. Returns their tokens, (1, T, 4·channels) each, f32.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when `watch` says so between two steps; else what a request or the device is at fault for.
    pub fn denoise(&mut self, edit: &Edit, references: &[Reference], watch: &Watch) -> Result<Vec<Tensor>, EngineError> {
        let output = self.grid(edit.width_px, edit.height_px)?;
        if edit.steps == 0 {
            return Err(EngineError::Request { field: "steps", problem: "must be 1 or more, got 0".into() });
        }
        let schedule = self.schedule(edit.steps, output);
        let conditionings = self.conditionings(&schedule.timesteps())?;
        let grids: Vec<Grid> = std::iter::once(output).chain(references.iter().map(|reference| reference.grid)).collect();
        let prompt = |text: &Tensor| {
            let rope = Rope::new(&self.checkpoint.transformer, &grids, text.dim(1)?, &self.device)?;
            Ok::<_, EngineError>(Prompt { text: text.to_dtype(self.precision.compute)?, rope })
        };
        let positive = prompt(&edit.positive)?;
        let negative = edit.negative.as_ref().filter(|_| edit.guidance_scale > 1.0).map(prompt).transpose()?;
        let mut images = self.noise(&edit.seeds, output)?;
        let mut caches = FirstBlockCache::for_each(edit.step_cache, images.len())?;
        let mut negative_caches = FirstBlockCache::for_each(edit.step_cache, images.len())?;
        for (index, conditioning) in conditionings.iter().enumerate() {
            let length = f64::from(schedule.sigmas[index + 1]) - f64::from(schedule.sigmas[index]);
            let done = index as u32 + 1;
            let wants_preview = watch.wants_preview(done, edit.steps);
            for (place, latents) in images.iter_mut().enumerate() {
                let mut tokens = vec![latents.clone()];
                tokens.extend(references.iter().map(|reference| reference.tokens.clone()));
                let tokens = Tensor::cat(&tokens, 1)?.to_dtype(self.precision.compute)?;
                let mut velocity = self.velocity(&tokens, &positive, output, conditioning, caches[place].as_mut())?;
                if let Some(negative) = &negative {
                    let negative = self.velocity(&tokens, negative, output, conditioning, negative_caches[place].as_mut())?;
                    velocity = guided(&velocity, &negative, edit.guidance_scale)?;
                }
                *latents = (&*latents + (&velocity * length)?)?;
                if wants_preview && place == 0 {
                    let image = schedule.predicted_image(index + 1, latents, &velocity);
                    let image = image.and_then(|tokens| unpack(&tokens, output));
                    self.previewer.show(watch, (done, edit.steps), image, |latents| Ok(self.vae.decode(latents)?));
                }
            }
            if index + 1 == conditionings.len() {
                // Until here a GPU had only been sent its work: without this its last steps would count as decoding.
                self.device.synchronize()?;
            }
            watch.step_done(done, edit.steps)?;
        }
        Ok(images)
    }

    /// The transformer's look at `tokens` (1, T, 4·channels), the output's before the references': the output's velocity, f32. It takes over what
    /// `cache` lets it; then the device is told each operation, for what is done follows from the values.
    fn velocity(
        &self,
        tokens: &Tensor,
        prompt: &Prompt,
        output: Grid,
        conditioning: &TimestepConditioning,
        cache: Option<&mut FirstBlockCache>,
    ) -> candle_core::Result<Tensor> {
        if let Some(cache) = cache {
            let output = output.tokens();
            let transformer = &self.transformer;
            let first = transformer.first_block(tokens, &prompt.text, output, conditioning, &prompt.rope)?;
            let image = cache.last_block(&first, || transformer.last_block(&first, output, conditioning, &prompt.rope))?;
            return transformer.velocity(&image, output, conditioning)?.to_dtype(DType::F32);
        }
        let of_prompt = [tokens, &prompt.text, &prompt.rope.cos, &prompt.rope.sin];
        let inputs = of_prompt.into_iter().chain(conditioning.tensors()).cloned().collect::<Vec<_>>();
        let kind = Kind { module: self.module, choices: vec![output.tokens()] };
        keeping_uploads(&self.device, &[tokens.dim(1)?, prompt.text.dim(1)?], || {
            self.graphs.repeat(kind, &inputs, |inputs| {
                let [tokens, text, cos, sin, of_time @ ..] = inputs else { bail!("a look has tokens, a text and two tables") };
                let rope = Rope { cos: cos.clone(), sin: sin.clone() };
                let conditioning = conditioning.with_tensors(of_time)?;
                let predicted = self.transformer.predict(tokens, text, output.tokens(), &conditioning, &rope)?;
                predicted.velocity.to_dtype(DType::F32)
            })
        })
    }

    /// `tokens`: (1, T, 4·channels) of an image of `output`'s size. Returns (1, 3, height, width) from -1 to 1.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn decode(&self, tokens: &Tensor, output: Grid) -> Result<Tensor, EngineError> {
        Ok(self.vae.decode(&unpack(tokens, output)?)?)
    }

    /// All images of `edit` over references in the sizes that [`Self::reference_size`] gives.
    ///
    /// # Errors
    /// As [`Self::encode_reference`], [`Self::denoise`] and [`Self::decode`]; [`EngineError::NotFinite`] when an image is not finite.
    pub fn generate(&mut self, edit: &Edit, references: &[RgbImage], watch: &Watch) -> Result<Vec<Image>, EngineError> {
        let output = self.grid(edit.width_px, edit.height_px)?;
        let references = references.iter().map(|image| self.encode_reference(image)).collect::<Result<Vec<_>, _>>()?;
        let tokens = self.denoise(edit, &references, watch)?;
        let images = tokens.iter().zip(&edit.seeds).map(|(tokens, seed)| {
            let decoded = self.decode(tokens, output)?;
            if !is_finite(&decoded)? {
                return Err(self.not_finite(edit, &references, tokens)?);
            }
            let rgb = to_rgb8(&decoded.i(0)?)?;
            Ok(Image { width_px: edit.width_px, height_px: edit.height_px, rgb, seed: *seed })
        });
        images.collect()
    }
}
