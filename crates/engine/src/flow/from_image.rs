//! What a flow makes of the image that a generation starts from, and of its mask.

use candle_core::Tensor;

use super::engine::FlowEngine;
use super::family::Family;
use super::start::Start;
use crate::pixels::to_pixels;
use crate::sd::kept::latent_mask;
use crate::sd::vae_encoder::Moments;
use crate::{EngineError, InitImage};

impl<F: Family> FlowEngine<F> {
    /// `pixels`: (1, 3, H, W), f32 from -1 to 1; both sides multiples of a token's. Returns what they may be in latents of the loop.
    ///
    /// # Errors
    /// [`EngineError::Request`] when the checkpoint cannot encode images; [`EngineError::NotFinite`]; when there is no memory.
    pub fn encode_image(&self, pixels: &Tensor) -> Result<Moments, EngineError> {
        let moments = self.vae.moments(pixels)?;
        if moments.are_finite()? {
            return Ok(moments);
        }
        let why = "it was made from the job's init_image; download the model again, or convert vae/ again";
        Err(self.not_finite_in("VAE's encoder", why))
    }

    /// `image`: in the size of the request.
    ///
    /// # Errors
    /// As [`Self::encode_image`].
    pub(super) fn start(&self, image: &InitImage) -> Result<Start, EngineError> {
        let width = image.rgb.width() as usize;
        let height = image.rgb.height() as usize;
        let factor = self.checkpoint.vae.latent_px();
        let mask = image.mask.as_ref().map(|mask| latent_mask(mask, (width, height), factor, &self.device)).transpose()?;
        let pixels = to_pixels(&image.rgb, width, height, &self.device)?;
        Ok(Start { moments: self.encode_image(&pixels)?, mask })
    }
}
