//! The decoder of the variational autoencoder: latents to pixels.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::attention::{Attention, AttentionConfig};
use super::bands::Bands;
use super::config::VaeConfig;
use super::resnet::{ResnetBlock, ResnetConfig};
use crate::layers::{Conv, GroupNorm, PaddedConv, conv, group_norm, sum, to_image, to_tokens};

/// The decoding half of diffusers' `AutoencoderKL`.
pub struct VaeDecoder {
    dtype: DType,
    scaling_factor: f64,
    shift_factor: f64,
    post_quant_conv: Option<Conv>,
    conv_in: PaddedConv,
    mid: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: PaddedConv,
    bands: Bands,
}

/// Attention over all places between two residual blocks: the middle of decoder and encoder.
pub(super) struct MidBlock {
    resnets: [ResnetBlock; 2],
    norm: GroupNorm,
    attention: Attention,
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Conv>,
}

impl VaeDecoder {
    /// `vb` stands at the autoencoder's own names (`decoder.conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let inner = widths[0];
        let outer = widths[widths.len() - 1];
        let latents = config.latent_channels;
        let decoder = vb.pp("decoder");
        Ok(Self {
            dtype: vb.dtype(),
            scaling_factor: config.scaling_factor,
            shift_factor: config.shift_factor.unwrap_or_default(),
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| conv(latents, latents, 1, 1, vb.pp("post_quant_conv")))
                .transpose()?,
            conv_in: PaddedConv::of(conv(latents, inner, 3, 1, decoder.pp("conv_in"))?)?,
            mid: MidBlock::new(config, inner, &decoder.pp("mid_block"))?,
            up_blocks: (0..widths.len())
                .map(|index| UpBlock::new(config, &widths, index, &decoder.pp("up_blocks").pp(index)))
                .collect::<Result<_>>()?,
            conv_norm_out: group_norm(config.norm_num_groups, outer, VaeConfig::NORM_EPS, &decoder.pp("conv_norm_out"))?,
            conv_out: PaddedConv::of(conv(outer, config.out_channels, 3, 1, decoder.pp("conv_out"))?)?,
            bands: Bands::new(config, &decoder)?,
        })
    }

    /// `latents`: (B, 4, H, W), f32, as the denoising loop leaves them. Returns (B, 3, 8·H, 8·W), f32 around -1 to 1
    /// (8 stands for [`VaeConfig::pixels_per_latent`]).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = self.middle(latents)?;
        for block in &self.up_blocks {
            hidden = block.forward(&hidden)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&hidden)?)?.to_dtype(DType::F32)
    }

    /// The same of one image, (1, 4, H, W), in a third of the memory.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn decode_in_bands(&self, latents: &Tensor) -> Result<Tensor> {
        self.bands.forward(self.middle(latents)?)?.to_dtype(DType::F32)
    }

    fn middle(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = ((latents / self.scaling_factor)? + self.shift_factor)?.to_dtype(self.dtype)?;
        if let Some(post_quant_conv) = &self.post_quant_conv {
            hidden = post_quant_conv.forward(&hidden)?;
        }
        self.mid.forward(&self.conv_in.forward(&hidden)?)
    }
}

impl MidBlock {
    pub(super) fn new(config: &VaeConfig, channels: usize, vb: &VarBuilder) -> Result<Self> {
        let attention = AttentionConfig { channels, context_channels: channels, heads: 1, bias: true };
        let resnet = |index: usize| ResnetBlock::new(channels, channels, resnets(config), &vb.pp("resnets").pp(index));
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            norm: group_norm(config.norm_num_groups, channels, VaeConfig::NORM_EPS, &vb.pp("attentions.0.group_norm"))?,
            attention: Attention::new(attention, &vb.pp("attentions.0"))?,
        })
    }

    /// (B, channels, H, W) to the same.
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self.resnets[0].forward(hidden, None)?;
        self.resnets[1].forward(&self.attend(&hidden)?, None)
    }

    fn attend(&self, hidden: &Tensor) -> Result<Tensor> {
        let places = to_tokens(&self.norm.forward(hidden)?)?;
        let attended = self.attention.forward(&places, &self.attention.context(&places)?)?;
        sum(&to_image(&attended, hidden)?, hidden)
    }
}

impl UpBlock {
    fn new(config: &VaeConfig, widths: &[usize], index: usize, vb: &VarBuilder) -> Result<Self> {
        let before = widths[index.saturating_sub(1)];
        let channels = widths[index];
        let resnets = (0..=config.layers_per_block).map(|layer| {
            let in_channels = if layer == 0 { before } else { channels };
            ResnetBlock::new(in_channels, channels, resnets(config), &vb.pp("resnets").pp(layer))
        });
        Ok(Self {
            resnets: resnets.collect::<Result<_>>()?,
            upsampler: (index + 1 < widths.len())
                .then(|| conv(channels, channels, 3, 1, vb.pp("upsamplers.0.conv")))
                .transpose()?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut hidden = hidden.clone();
        for resnet in &self.resnets {
            hidden = resnet.forward(&hidden, None)?;
        }
        let Some(upsampler) = &self.upsampler else { return Ok(hidden) };
        let (_, _, height, width) = hidden.dims4()?;
        upsampler.forward_enlarged(&hidden, 2 * height, 2 * width)
    }
}

pub(super) fn resnets(config: &VaeConfig) -> ResnetConfig {
    ResnetConfig { groups: config.norm_num_groups, eps: VaeConfig::NORM_EPS, time_channels: None }
}
