//! What the UNet predicts in a step, with guidance.

use candle_core::Tensor;

use super::StableDiffusion;
use super::conditioning::{Conditioning, Text};
use super::config::ExtraInput;
use super::guidance::Guidance;
use super::tiling::Tiling;
use crate::EngineError;
use crate::device::keeping_uploads;

impl StableDiffusion {
    /// One forward pass of the UNet at `latents` (N, 4, H, W), f32, already scaled for it, with guidance.
    ///
    /// `text`: a row an image. With negative prompts both are predicted, as one batch where they are of one length, and the result is
    /// `negative + guidance_scale·(positive − negative)` (Ho and Salimans 2022). A model that edits an image (`latents`: N, 8, H, W) predicts once
    /// more, without it. A model that was distilled over the scale (LCM) gets it as an input of its one forward pass. Returns (N, 4, H, W): noise or velocity, as the checkpoint was trained.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn predict_noise(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &Conditioning,
        guidance: impl Into<Guidance>,
        tiling: Tiling,
    ) -> Result<Tensor, EngineError> {
        let guidance = guidance.into();
        keeping_uploads(&self.device, latents.dims(), || self.predict_guided(latents, timestep, text, guidance, tiling))
    }

    fn predict_guided(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &Conditioning,
        guidance: Guidance,
        tiling: Tiling,
    ) -> Result<Tensor, EngineError> {
        let predict = |latents: &Tensor, text: &Text| self.predict(latents, timestep, text, guidance.scale, tiling);
        let Some(negative) = &text.negative else { return predict(latents, &text.positive) };
        let edits = self.checkpoint.unet.extra_input() == ExtraInput::Image;
        let nothing = edits.then(|| without_image(latents)).transpose()?;
        let mut seen = vec![(latents, negative), (latents, &text.positive)];
        seen.extend(nothing.as_ref().map(|nothing| (nothing, negative)));
        let predicted = if text.is_of_one_length()? {
            let (latents, texts): (Vec<_>, Vec<_>) = seen.into_iter().unzip();
            predict(&Tensor::cat(&latents, 0)?, &Text::cat(&texts)?)?.chunk(latents.len(), 0)?
        } else {
            seen.into_iter().map(|(latents, text)| predict(latents, text)).collect::<Result<_, _>>()?
        };
        match &*predicted {
            [negative, positive, nothing] => Ok(guidance.apply_to_edit(nothing, negative, positive)?),
            [negative, positive] => Ok(guidance.apply(negative, positive)?),
            _ => Err(candle_core::Error::msg("guidance has two predictions, or three").into()),
        }
    }

    /// The UNet's output for every row, together or, where memory is short, one after the other.
    fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        text: &Text,
        guidance_scale: f64,
        tiling: Tiling,
    ) -> Result<Tensor, EngineError> {
        let unet = &self.adapters.current().unet;
        let rows = latents.dim(0)?;
        if !tiling.one_by_one || rows == 1 {
            return Ok(unet.forward(latents, timestep, text, guidance_scale)?);
        }
        let each = (0..rows).map(|row| unet.forward(&latents.narrow(0, row, 1)?, timestep, &text.row(row)?, guidance_scale));
        Ok(Tensor::cat(&each.collect::<candle_core::Result<Vec<_>>>()?, 0)?)
    }
}

/// The input of a UNet that edits, (N, 8, H, W), with zeros for the image.
fn without_image(input: &Tensor) -> candle_core::Result<Tensor> {
    let latents = input.narrow(1, 0, input.dim(1)? / 2)?;
    Tensor::cat(&[&latents, &latents.zeros_like()?], 1)
}
