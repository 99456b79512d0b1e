//! The encoder of the variational autoencoder: pixels to latents.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::VaeConfig;
use super::resnet::ResnetBlock;
use super::vae::{MidBlock, resnets};
use crate::device::{is_channels_last, to_channels_last, with_channels_first, with_channels_last};
use crate::finite::{clamp_finite, is_finite};
use crate::layers::{Conv, GroupNorm, PaddedConv, conv, group_norm};

/// The encoding half of diffusers' `AutoencoderKL`.
pub struct VaeEncoder {
    dtype: DType,
    scaling_factor: f64,
    shift_factor: f64,
    conv_in: PaddedConv,
    down_blocks: Vec<DownBlock>,
    mid: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
    quant_conv: Option<Conv>,
}

struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsampler: Option<Conv>,
}

/// What an image may be in latents: a normal number each. Both: (B, 4, H/8, W/8), f32, scaled as the denoising loop wants them.
pub struct Moments {
    pub mean: Tensor,
    /// Standard deviations.
    pub std: Tensor,
}

impl Moments {
    /// Whether mean and deviation are finite everywhere.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn are_finite(&self) -> Result<bool> {
        Ok(is_finite(&self.mean)? && is_finite(&self.std)?)
    }

    /// Latents of images, in the shape of `drawn`: (N, C, H, W), f32, standard normal.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(crate) fn sampled(&self, drawn: &Tensor) -> Result<Tensor> {
        drawn.broadcast_mul(&self.std)?.broadcast_add(&self.mean)
    }
}

impl VaeEncoder {
    /// `vb` stands at the autoencoder's own names (`encoder.conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let widths = &config.block_out_channels;
        let outer = widths[0];
        let inner = widths[widths.len() - 1];
        let moments = 2 * config.latent_channels;
        let encoder = vb.pp("encoder");
        Ok(Self {
            dtype: vb.dtype(),
            scaling_factor: config.scaling_factor,
            shift_factor: config.shift_factor.unwrap_or_default(),
            conv_in: PaddedConv::of(conv(config.in_channels, outer, 3, 1, encoder.pp("conv_in"))?)?,
            down_blocks: (0..widths.len())
                .map(|index| DownBlock::new(config, index, &encoder.pp("down_blocks").pp(index)))
                .collect::<Result<_>>()?,
            mid: MidBlock::new(config, inner, &encoder.pp("mid_block"))?,
            conv_norm_out: group_norm(config.norm_num_groups, inner, VaeConfig::NORM_EPS, &encoder.pp("conv_norm_out"))?,
            conv_out: conv(inner, moments, 3, 1, encoder.pp("conv_out"))?,
            quant_conv: config.use_quant_conv.then(|| conv(moments, moments, 1, 1, vb.pp("quant_conv"))).transpose()?,
        })
    }

    /// `pixels`: (B, 3, H, W), f32 from -1 to 1; both sides multiples of [`VaeConfig::pixels_per_latent`].
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn encode(&self, pixels: &Tensor) -> Result<Moments> {
        // diffusers' bounds for the logarithm of the variance.
        const LOG_VARIANCE: (f64, f64) = (-30.0, 20.0);
        let mut hidden = self.conv_in.forward(&pixels.to_dtype(self.dtype)?)?;
        for block in &self.down_blocks {
            hidden = block.forward(&hidden)?;
        }
        hidden = self.mid.forward(&hidden)?;
        hidden = self.conv_out.forward(&self.conv_norm_out.forward_silu(&hidden)?)?;
        if let Some(quant_conv) = &self.quant_conv {
            hidden = quant_conv.forward(&hidden)?;
        }
        let moments = hidden.to_dtype(DType::F32)?.chunk(2, 1)?;
        let std = (clamp_finite(&moments[1], LOG_VARIANCE.0, LOG_VARIANCE.1)? * 0.5)?.exp()?;
        Ok(Moments { mean: ((&moments[0] - self.shift_factor)? * self.scaling_factor)?, std: (std * self.scaling_factor)? })
    }
}

impl DownBlock {
    fn new(config: &VaeConfig, index: usize, vb: &VarBuilder) -> Result<Self> {
        let widths = &config.block_out_channels;
        let before = widths[index.saturating_sub(1)];
        let channels = widths[index];
        let resnets = (0..config.layers_per_block).map(|layer| {
            let in_channels = if layer == 0 { before } else { channels };
            ResnetBlock::new(in_channels, channels, resnets(config), &vb.pp("resnets").pp(layer))
        });
        Ok(Self {
            resnets: resnets.collect::<Result<_>>()?,
            downsampler: (index + 1 < widths.len())
                .then(|| conv(channels, channels, 3, 2, vb.pp("downsamplers.0.conv")))
                .transpose()?,
        })
    }

    /// (B, in, H, W) to (B, out, H/2, W/2), or to the same sides in the last block.
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut hidden = hidden.clone();
        for resnet in &self.resnets {
            hidden = resnet.forward(&hidden, None)?;
        }
        let Some(downsampler) = &self.downsampler else { return Ok(hidden) };
        let (_, _, height, width) = hidden.dims4()?;
        // Diffusers puts zeros below and to the right only. Moved by one, the windows of a convolution with zeros all
        // around are the same but for the first of each row and column.
        let windows = |moved: &Tensor| downsampler.forward(moved)?.narrow(2, 1, height / 2)?.narrow(3, 1, width / 2);
        if is_channels_last(&hidden) {
            let moved = with_channels_last(&hidden)?.pad_with_zeros(1, 1, 0)?.pad_with_zeros(2, 1, 0)?;
            return to_channels_last(&windows(&with_channels_first(&moved)?)?);
        }
        windows(&hidden.pad_with_zeros(2, 1, 0)?.pad_with_zeros(3, 1, 0)?)
    }
}
