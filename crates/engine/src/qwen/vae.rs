//! The autoencoder for single images: pixels to latents and back.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::AutoencoderConfig;
use super::vae_blocks::{MidBlock, ResidualBlock, causal_conv, conv, norm};
use crate::finite::clamp_finite;
use crate::layers::{ChannelNorm, Conv};

const COLOURS: usize = 3;

/// diffusers' `AutoencoderKLQwenImage` for films of one frame, in f32.
pub struct Autoencoder {
    encoder: Encoder,
    decoder: Decoder,
    /// Of the latents that the transformer does not see: (1, C, 1, 1).
    mean: Tensor,
    std: Tensor,
}

impl Autoencoder {
    /// `vb` stands at the autoencoder's own names (`encoder.conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: &AutoencoderConfig, vb: &VarBuilder) -> Result<Self> {
        let statistic = |values: &[f64], device: &Device| {
            let values: Vec<f32> = values.iter().map(|number| *number as f32).collect();
            Tensor::from_vec(values, (1, config.z_dim, 1, 1), device)
        };
        Ok(Self {
            encoder: Encoder::new(config, vb)?,
            decoder: Decoder::new(config, vb)?,
            mean: statistic(&config.latents_mean, vb.device())?,
            std: statistic(&config.latents_std, vb.device())?,
        })
    }

    /// `pixels`: (1, 3, H, W), f32 from -1 to 1, sides multiples of [`AutoencoderConfig::pixels_per_latent`]. Returns the mode of the
    /// latents (1, C, H/8, W/8), normalized as the transformer sees them.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn encode(&self, pixels: &Tensor) -> Result<Tensor> {
        self.encoder.forward(pixels)?.broadcast_sub(&self.mean)?.broadcast_div(&self.std)
    }

    /// The inverse: (1, C, H, W) as the transformer leaves them to (1, 3, 8·H, 8·W) from -1 to 1.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decoder.forward(&latents.broadcast_mul(&self.std)?.broadcast_add(&self.mean)?)
    }
}

struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    mid: MidBlock,
    norm_out: ChannelNorm,
    conv_out: Conv,
    quant_conv: Conv,
    latent_channels: usize,
}

struct Level {
    blocks: Vec<ResidualBlock>,
    /// Halves the sides in the encoder, doubles them in the decoder.
    resample: Option<Conv>,
}

impl Encoder {
    fn new(config: &AutoencoderConfig, vb: &VarBuilder) -> Result<Self> {
        let encoder = vb.pp("encoder");
        let mut channels = config.base_dim;
        let mut levels = Vec::with_capacity(config.dim_mult.len());
        // One flat list: the residual blocks of a level, then its downsampler.
        let mut place = 0;
        let mut next = || {
            place += 1;
            encoder.pp("down_blocks").pp(place - 1)
        };
        for (level, multiple) in config.dim_mult.iter().enumerate() {
            let width = config.base_dim * multiple;
            let mut blocks = Vec::with_capacity(config.num_res_blocks);
            for _ in 0..config.num_res_blocks {
                blocks.push(ResidualBlock::new(channels, width, &next())?);
                channels = width;
            }
            let halves = level + 1 < config.dim_mult.len();
            let resample = halves.then(|| conv(width, width, 2, &next().pp("resample.1"))).transpose()?;
            levels.push(Level { blocks, resample });
        }
        let both = 2 * config.z_dim;
        Ok(Self {
            conv_in: causal_conv(COLOURS, config.base_dim, 3, &encoder.pp("conv_in"))?,
            levels,
            mid: MidBlock::new(channels, &encoder.pp("mid_block"))?,
            norm_out: norm(channels, &encoder.pp("norm_out"))?,
            conv_out: causal_conv(channels, both, 3, &encoder.pp("conv_out"))?,
            quant_conv: causal_conv(both, both, 1, &vb.pp("quant_conv"))?,
            latent_channels: config.z_dim,
        })
    }

    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(pixels)?;
        for level in &self.levels {
            for block in &level.blocks {
                hidden = block.forward(&hidden)?;
            }
            if let Some(downsampler) = &level.resample {
                hidden = halve(&hidden, downsampler)?;
            }
        }
        hidden = self.conv_out.forward(&self.norm_out.forward_silu(&self.mid.forward(&hidden)?)?)?;
        self.quant_conv.forward(&hidden)?.narrow(1, 0, self.latent_channels)
    }
}

/// Zeros come below and to the right only. Moved by one, the windows of a convolution with zeros all around are the same but for the
/// first of each row and column.
fn halve(hidden: &Tensor, downsampler: &Conv) -> Result<Tensor> {
    let (_, _, height, width) = hidden.dims4()?;
    let moved = hidden.pad_with_zeros(2, 1, 0)?.pad_with_zeros(D::Minus1, 1, 0)?;
    downsampler.forward(&moved)?.narrow(2, 1, height / 2)?.narrow(3, 1, width / 2)?.contiguous()
}

struct Decoder {
    post_quant_conv: Conv,
    conv_in: Conv,
    mid: MidBlock,
    levels: Vec<Level>,
    norm_out: ChannelNorm,
    conv_out: Conv,
}

impl Decoder {
    fn new(config: &AutoencoderConfig, vb: &VarBuilder) -> Result<Self> {
        let decoder = vb.pp("decoder");
        let widths: Vec<usize> = config.dim_mult.iter().rev().map(|multiple| config.base_dim * multiple).collect();
        let inner = widths[0];
        let mut channels = inner;
        let mut levels = Vec::with_capacity(widths.len());
        for (index, width) in widths.iter().enumerate() {
            let level = decoder.pp("up_blocks").pp(index);
            let mut blocks = Vec::with_capacity(config.num_res_blocks + 1);
            for block in 0..=config.num_res_blocks {
                blocks.push(ResidualBlock::new(channels, *width, &level.pp("resnets").pp(block))?);
                channels = *width;
            }
            let doubles = index + 1 < widths.len();
            let resample = doubles.then(|| conv(*width, width / 2, 1, &level.pp("upsamplers.0.resample.1"))).transpose()?;
            if doubles {
                channels = width / 2;
            }
            levels.push(Level { blocks, resample });
        }
        Ok(Self {
            post_quant_conv: causal_conv(config.z_dim, config.z_dim, 1, &vb.pp("post_quant_conv"))?,
            conv_in: causal_conv(config.z_dim, inner, 3, &decoder.pp("conv_in"))?,
            mid: MidBlock::new(inner, &decoder.pp("mid_block"))?,
            levels,
            norm_out: norm(channels, &decoder.pp("norm_out"))?,
            conv_out: causal_conv(channels, COLOURS, 3, &decoder.pp("conv_out"))?,
        })
    }

    fn forward(&self, latents: &Tensor) -> Result<Tensor> {
        let mut hidden = self.mid.forward(&self.conv_in.forward(&self.post_quant_conv.forward(latents)?)?)?;
        for level in &self.levels {
            for block in &level.blocks {
                hidden = block.forward(&hidden)?;
            }
            if let Some(upsampler) = &level.resample {
                let (_, _, height, width) = hidden.dims4()?;
                hidden = upsampler.forward_enlarged(&hidden, 2 * height, 2 * width)?;
            }
        }
        clamp_finite(&self.conv_out.forward(&self.norm_out.forward_silu(&hidden)?)?, -1.0, 1.0)
    }
}
