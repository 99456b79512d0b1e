//! The decoder of the variational autoencoder: latents to pixels.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Module, VarBuilder, conv2d, group_norm};

use super::attention::{Attention, AttentionConfig};
use super::config::VaeConfig;
use super::conv::Conv3x3;
use super::resnet::{ResnetBlock, ResnetConfig};

/// Of every norm in it; diffusers has it in code, not in config.json.
const NORM_EPS: f64 = 1e-6;

/// The decoding half of diffusers' `AutoencoderKL`.
pub struct VaeDecoder {
    scaling_factor: f64,
    shift_factor: f64,
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv3x3,
    mid_resnets: [ResnetBlock; 2],
    mid_norm: GroupNorm,
    mid_attention: Attention,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv3x3,
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Conv3x3>,
}

impl VaeDecoder {
    /// `vb` stands at the autoencoder's own names (`decoder.conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (inner, outer) = (widths[0], widths[widths.len() - 1]);
        let latents = config.latent_channels;
        let post_quant = || conv2d(latents, latents, 1, Conv2dConfig::default(), vb.pp("post_quant_conv"));
        let attention = AttentionConfig { channels: inner, context_channels: inner, heads: 1, bias: true };
        let decoder = vb.pp("decoder");
        let mid = decoder.pp("mid_block");
        let mid_resnet = |index: usize| ResnetBlock::new(inner, inner, resnets(config), &mid.pp("resnets").pp(index));
        let up = |index| UpBlock::new(config, &widths, index, &decoder.pp("up_blocks").pp(index));
        Ok(Self {
            scaling_factor: config.scaling_factor,
            shift_factor: config.shift_factor.unwrap_or_default(),
            post_quant_conv: config.use_post_quant_conv.then(post_quant).transpose()?,
            conv_in: Conv3x3::new(latents, inner, 1, decoder.pp("conv_in"))?,
            mid_resnets: [mid_resnet(0)?, mid_resnet(1)?],
            mid_norm: group_norm(config.norm_num_groups, inner, NORM_EPS, mid.pp("attentions.0.group_norm"))?,
            mid_attention: Attention::new(attention, &mid.pp("attentions.0"))?,
            up_blocks: (0..widths.len()).map(up).collect::<Result<_>>()?,
            conv_norm_out: group_norm(config.norm_num_groups, outer, NORM_EPS, decoder.pp("conv_norm_out"))?,
            conv_out: Conv3x3::new(outer, config.out_channels, 1, decoder.pp("conv_out"))?,
        })
    }

    /// `latents`: (B, 4, H, W), f32, as the denoising loop leaves them. Returns (B, 3, 8·H, 8·W) around -1 to 1
    /// (8 stands for [`VaeConfig::pixels_per_latent`]).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = ((latents / self.scaling_factor)? + self.shift_factor)?;
        if let Some(post_quant_conv) = &self.post_quant_conv {
            hidden = post_quant_conv.forward(&hidden)?;
        }
        hidden = self.mid_resnets[0].forward(&self.conv_in.forward(&hidden)?, None)?;
        hidden = self.mid_resnets[1].forward(&self.attend(&hidden)?, None)?;
        for block in &self.up_blocks {
            hidden = block.forward(&hidden)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward(&hidden)?.silu()?)
    }

    fn attend(&self, hidden: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = hidden.dims4()?;
        let places = self.mid_norm.forward(hidden)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let attended = self.mid_attention.forward(&places, &places)?;
        attended.transpose(1, 2)?.contiguous()?.reshape((batch, channels, height, width))? + hidden
    }
}

impl UpBlock {
    fn new(config: &VaeConfig, widths: &[usize], index: usize, vb: &VarBuilder) -> Result<Self> {
        let (before, channels) = (widths[index.saturating_sub(1)], widths[index]);
        let resnet = |layer: usize| {
            let in_channels = if layer == 0 { before } else { channels };
            ResnetBlock::new(in_channels, channels, resnets(config), &vb.pp("resnets").pp(layer))
        };
        let upsampler = || Conv3x3::new(channels, channels, 1, vb.pp("upsamplers.0.conv"));
        Ok(Self {
            resnets: (0..=config.layers_per_block).map(resnet).collect::<Result<_>>()?,
            upsampler: (index + 1 < widths.len()).then(upsampler).transpose()?,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let mut hidden = hidden.clone();
        for resnet in &self.resnets {
            hidden = resnet.forward(&hidden, None)?;
        }
        let Some(upsampler) = &self.upsampler else { return Ok(hidden) };
        let (_, _, height, width) = hidden.dims4()?;
        upsampler.forward(&hidden.upsample_nearest2d(2 * height, 2 * width)?)
    }
}

fn resnets(config: &VaeConfig) -> ResnetConfig {
    ResnetConfig { groups: config.norm_num_groups, eps: NORM_EPS, time_channels: None }
}

/// `decoded`: (3, H, W), f32 around -1 to 1. Returns (H, W, 3) bytes: x/2 + 1/2 clamped to 0..1, in 255 steps.
///
/// # Errors
/// When the tensor has another shape or cannot be read back from its device.
pub fn to_rgb8(decoded: &Tensor) -> Result<Vec<u8>> {
    let (_, height, width) = decoded.dims3()?;
    let unit = ((decoded / 2.0)? + 0.5)?.clamp(0.0, 1.0)?;
    let bytes = (unit * 255.0)?.round()?.to_dtype(DType::U8)?;
    bytes.permute((1, 2, 0))?.reshape(height * width * 3)?.to_vec1()
}
