//! ControlNet (Zhang et al. 2023, arXiv 2302.05543): holds a generation to an image, by what it adds to the UNet's way down.

mod config;
pub mod files;
mod hint;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use self::config::ControlNetConfig;
use self::hint::HintEmbedding;
use super::ahead::{Ahead, AtStep};
use super::conditioning::Text;
use super::unet_encoder::{Encoded, Residuals, UnetEncoder};
use crate::layers::{Conv, conv, scaled};

/// diffusers' `ControlNetModel`.
pub(super) struct ControlNet {
    hint: HintEmbedding,
    encoder: UnetEncoder,
    /// `controlnet_down_blocks`, which training begins with at zero: one for each skip.
    skips: Vec<Conv>,
    /// `controlnet_mid_block`.
    middle: Conv,
}

impl ControlNet {
    /// `vb` stands at the network's own names (`controlnet_cond_embedding.conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    fn new(config: &ControlNetConfig, vb: &VarBuilder) -> Result<Self> {
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
        let skips = skips.iter().zip(&self.skips).map(|(skip, zero)| scaled(&zero.forward(skip)?, &scale));
        let skips = skips.collect::<Result<_>>()?;
        Ok(Residuals::of(Encoded { skips, hidden: scaled(&self.middle.forward(&hidden)?, &scale)? }))
    }
}
