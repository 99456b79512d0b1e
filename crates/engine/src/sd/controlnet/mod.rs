//! ControlNet (Zhang et al. 2023, arXiv 2302.05543): holds a generation to an image, by what it adds to the UNet's way down.

pub(super) mod config;
pub(super) mod control;
pub mod files;
pub(super) mod hint;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use self::config::ControlNetConfig;
use self::hint::HintEmbedding;
use super::ahead::{Ahead, AtStep};
use super::conditioning::Text;
use super::unet_encoder::{Encoded, UnetEncoder};
use crate::layers::{Conv, conv};

/// diffusers' `ControlNetModel`.
pub(super) struct ControlNet {
    hint: HintEmbedding,
    encoder: UnetEncoder,
    /// `controlnet_down_blocks`, which training begins with at zero: one for each skip.
    skips: Vec<Conv>,
    /// `controlnet_mid_block`.
    middle: Conv,
}

/// What one ControlNet, or several together, add in a step.
pub(super) struct Residuals(Encoded);

impl Residuals {
    /// The sum of both.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub(super) fn and(self, other: Self) -> Result<Self> {
        self.added_to(other.0).map(Self)
    }

    /// `encoded` with all of it added.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub(super) fn added_to(self, encoded: Encoded) -> Result<Encoded> {
        if self.0.skips.len() != encoded.skips.len() {
            return Err(candle_core::Error::msg("a ControlNet has other layers than the UNet"));
        }
        let skips = encoded.skips.into_iter().zip(self.0.skips).map(|(skip, residual)| skip + residual);
        Ok(Encoded { skips: skips.collect::<Result<_>>()?, hidden: (encoded.hidden + self.0.hidden)? })
    }

    /// Of every layer on the way down, from the outermost, and of the middle.
    pub(super) fn into_tensors(self) -> Vec<Tensor> {
        self.0.skips.into_iter().chain([self.0.hidden]).collect()
    }
}

impl ControlNet {
    /// `vb` stands at the network's own names (`controlnet_cond_embedding.conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &ControlNetConfig, vb: &VarBuilder) -> Result<Self> {
        let widths = config.skip_channels();
        let innermost = config.encoder.block_out_channels.last().copied().unwrap_or_default();
        let zeros = vb.pp("controlnet_down_blocks");
        Ok(Self {
            hint: HintEmbedding::new(config, &vb.pp("controlnet_cond_embedding"))?,
            encoder: UnetEncoder::new(&config.encoder, vb)?,
            skips: widths
                .iter()
                .enumerate()
                .map(|(index, width)| conv(*width, *width, 1, 1, zeros.pp(index)))
                .collect::<Result<_>>()?,
            middle: conv(innermost, innermost, 1, 1, vb.pp("controlnet_mid_block"))?,
        })
    }

    /// What it looks at of an image. `pixels`: (1, 3, 8·H, 8·W), f32 from 0 to 1. Returns (1, channels of the outermost level, H, W).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn condition(&self, pixels: &Tensor) -> Result<Tensor> {
        self.hint.forward(&pixels.to_dtype(self.encoder.dtype())?)
    }

    /// As [`UnetEncoder::ahead`].
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn ahead(&self, text: &Text, timesteps: &[f64]) -> Result<Ahead> {
        // What a UNet was distilled over is nothing that a ControlNet knows.
        self.encoder.ahead(&self.encoder.parts(), text, timesteps, 1.0)
    }

    /// Numbers that [`Self::ahead`] gives for a token, and for a timestep.
    pub(super) fn channels_ahead(&self) -> (usize, usize) {
        self.encoder.parts().channels_ahead()
    }

    /// `latents`: (B, 4, H, W), f32, as the UNet sees them; `condition`: of [`Self::condition`]; `scale`: (1,), what all is multiplied by.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        condition: &Tensor,
        scale: &Tensor,
        mut at_step: AtStep<'_>,
    ) -> Result<Residuals> {
        let Encoded { skips, hidden } = self.encoder.forward(latents, Some(condition), &mut at_step)?;
        let scale = scale.to_dtype(self.encoder.dtype())?;
        let skips = skips.iter().zip(&self.skips).map(|(skip, zero)| zero.forward(skip)?.broadcast_mul(&scale));
        let skips = skips.collect::<Result<_>>()?;
        Ok(Residuals(Encoded { skips, hidden: self.middle.forward(&hidden)?.broadcast_mul(&scale)? }))
    }
}
