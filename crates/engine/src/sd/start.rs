//! Where a generation starts from: noise, or an image with noise on it; and what a mask keeps of that image.

use candle_core::{Result, Tensor};

use super::StableDiffusion;
use super::config::ExtraInput;
use super::kept::{GENERATED_FROM, Kept, latent_mask, mixed};
use super::latent_batch::LatentBatch;
use super::vae_encoder::Moments;
use crate::pixels::to_pixels;
use crate::schedule::Schedule;
use crate::schedule::config::Pipeline;
use crate::{EngineError, GenerateRequest, InitImage};

/// An image to start from, ready for any number of seeds.
pub(super) struct Start {
    moments: Moments,
    /// (1, 1, H/8, W/8), f32: 1 where it is generated anew, 0 where it is kept.
    mask: Option<Tensor>,
    /// What the mask leaves of the image, for a UNet that looks at it.
    masked: Option<Moments>,
    /// All steps are done: under a mask only noise is started from then.
    from_noise: bool,
    /// For a UNet that edits it, and starts from noise: the image's own latents, (1, 4, H/8, W/8), f32, as the VAE made them.
    edited: Option<Tensor>,
}

impl StableDiffusion {
    /// `pixels`: (1, 3, H, W), f32 from -1 to 1.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the checkpoint cannot encode images; when there is no memory.
    pub fn encode_image(&self, pixels: &Tensor) -> std::result::Result<Moments, EngineError> {
        let Some(encoder) = &self.vae_encoder else {
            let problem = "this model's VAE has no encoder: it cannot start from an image".into();
            return Err(EngineError::Request { field: "init_image", problem });
        };
        self.encode_finite(encoder, pixels)
    }

    /// # Errors
    /// As [`Self::encode_image`].
    pub(super) fn start(
        &self,
        image: &InitImage,
        size: (u32, u32),
        from_noise: bool,
    ) -> std::result::Result<Start, EngineError> {
        let width = size.0 as usize;
        let height = size.1 as usize;
        let factor = self.checkpoint.vae.pixels_per_latent();
        let mask = image.mask.as_ref().map(|mask| latent_mask(mask, (width, height), factor, &self.device)).transpose()?;
        let pixels = to_pixels(&image.rgb, width, height, &self.device)?;
        let moments = self.encode_image(&pixels)?;
        let extra_input = self.checkpoint.unet.extra_input();
        let left = image.mask.as_ref().filter(|_| extra_input == ExtraInput::MaskAndImage);
        let masked = left.map(|mask| self.encode_image(&without_masked(&pixels, mask, width, height)?)).transpose()?;
        let edited = (extra_input == ExtraInput::Image).then(|| self.checkpoint.vae.unscaled(&moments.mean)).transpose()?;
        Ok(Start { moments, mask, masked, from_noise, edited })
    }
}

/// `pixels` (1, 3, H, W) where `mask` keeps them, and 0, the middle of their range, elsewhere.
fn without_masked(pixels: &Tensor, mask: &[u8], width: usize, height: usize) -> Result<Tensor> {
    let kept: Vec<f32> = mask.iter().map(|pixel| if *pixel >= GENERATED_FROM { 0.0 } else { 1.0 }).collect();
    pixels.broadcast_mul(&Tensor::from_vec(kept, (1, 1, height, width), pixels.device())?)
}

impl LatentBatch {
    /// Makes the first latents of every image from what was drawn. From an image it is in diffusers' order: what the encoder leaves open,
    /// then the noise on it.
    pub(super) fn begin(&mut self, schedule: &Schedule, start: Option<&Start>) -> Result<()> {
        let device = self.latents.device().clone();
        let drawn = self.latents.clone();
        let Some(Start { moments, mask, masked, from_noise, edited: None }) = start else {
            let edited = start.and_then(|start| start.edited.as_ref());
            self.added = edited.map(|image| image.repeat((drawn.dim(0)?, 1, 1, 1))).transpose()?;
            self.latents = (drawn * schedule.init_noise_sigma)?;
            return Ok(());
        };
        let image = moments.sampled(&drawn)?;
        // An inpainting UNet's pipeline does not encode an image that nothing of is kept.
        let noise = if masked.is_some() && *from_noise { drawn } else { self.noise.draw(&device)? };
        self.latents = if *from_noise && mask.is_some() {
            (&noise * schedule.init_noise_sigma)?
        } else {
            mixed(&image, &noise, schedule.mixture(0))?
        };
        if let Some(mask) = mask {
            // Diffusers encodes what the mask leaves as well, for UNets that look at it: so its seeds are found again.
            let drawn = self.noise.draw(&device)?;
            if let Some(masked) = masked {
                let image = masked.sampled(&drawn)?;
                let (count, _, height, width) = image.dims4()?;
                self.added = Some(Tensor::cat(&[&mask.expand((count, 1, height, width))?.contiguous()?, &image], 1)?);
            } else {
                self.kept = Some(Kept { image, noise, mask: mask.clone() });
            }
        }
        Ok(())
    }

    /// Puts back what the mask keeps, with the noise of the step that comes `next`; after the last there is none.
    pub(super) fn requeue(&mut self, schedule: &Schedule, next: usize) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let mixture = (next < schedule.steps.len()).then(|| schedule.mixture(next));
        self.latents = kept.restore(&self.latents, mixture)?;
        Ok(())
    }
}

/// What a UNet looks at besides the latents has to be there, and nothing that it does not look at.
///
/// # Errors
/// [`EngineError::Request`] with the first field that is missing or is not read.
pub(super) fn check_start(request: &GenerateRequest, extra_input: ExtraInput) -> std::result::Result<(), EngineError> {
    let image = request.start.is_some();
    let mask = request.start.as_ref().is_some_and(|start| start.mask.is_some());
    let image_scale = request.sampling.image_guidance_scale.is_some();
    let (field, problem) = match extra_input {
        ExtraInput::MaskAndImage if !mask => {
            ("mask_image", "this model fills in a part of an image: the job needs init_image and mask_image")
        }
        ExtraInput::Image if !image => ("init_image", "this model edits an image: the job needs init_image"),
        ExtraInput::Image if mask => ("mask_image", "this model edits the whole of an image: leave mask_image out"),
        ExtraInput::Nothing | ExtraInput::MaskAndImage if image_scale => {
            ("image_guidance_scale", "means something only with a model that edits images (instruct-pix2pix): leave it out")
        }
        _ => return Ok(()),
    };
    Err(EngineError::Request { field, problem: problem.into() })
}

/// The pipeline that diffusers has for such a job.
pub(super) fn pipeline_of(request: &GenerateRequest, extra_input: ExtraInput) -> Pipeline {
    match &request.start {
        _ if extra_input == ExtraInput::Image => Pipeline::Instructed,
        None => Pipeline::TextToImage,
        Some(InitImage { mask: None, .. }) => Pipeline::ImageToImage,
        Some(InitImage { mask: Some(_), .. }) => Pipeline::Inpaint,
    }
}
