//! The decoder's wide layers in bands of rows: the same image as at once, in a third of the memory.
//!
//! A convolution needs a row above and below its band, and a norm the statistics of the whole image, so that every layer goes over the
//! image twice: only what goes in and what comes out is there as a whole, not what lies between.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::VaeConfig;
use crate::device::{is_channels_last, with_channels_first, with_channels_last};
use crate::layers::{Conv, conv, sum};

/// Values of one band, 16 MiB in f32.
const BAND: usize = 1 << 22;

/// What comes after the middle of [`VaeDecoder`](super::vae::VaeDecoder); the tensors are the same.
pub(super) struct Bands {
    blocks: Vec<Block>,
    norm_out: Norm,
    conv_out: Conv,
    out_channels: usize,
}

struct Block {
    resnets: Vec<Resnet>,
    upsampler: Option<Conv>,
}

struct Resnet {
    norm1: Norm,
    conv1: Conv,
    norm2: Norm,
    conv2: Conv,
    shortcut: Option<Conv>,
    out_channels: usize,
}

/// A group norm that is measured over the whole image and applied to a part of it.
struct Norm {
    groups: usize,
    weight: Tensor,
    bias: Tensor,
}

/// Factor and summand of every channel, (1, channels, 1, 1), f32 each.
type Affine = (Tensor, Tensor);

impl Bands {
    /// `vb` stands at the decoder's own names (`up_blocks.0...`).
    pub(super) fn new(config: &VaeConfig, vb: &VarBuilder) -> Result<Self> {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let outer = widths[widths.len() - 1];
        let blocks = (0..widths.len()).map(|index| {
            let vb = vb.pp("up_blocks").pp(index);
            let before = widths[index.saturating_sub(1)];
            let channels = widths[index];
            let resnets = (0..=config.layers_per_block).map(|layer| {
                let in_channels = if layer == 0 { before } else { channels };
                Resnet::new(config, in_channels, channels, &vb.pp("resnets").pp(layer))
            });
            Ok(Block {
                resnets: resnets.collect::<Result<_>>()?,
                upsampler: (index + 1 < widths.len())
                    .then(|| conv(channels, channels, 3, 1, vb.pp("upsamplers.0.conv")))
                    .transpose()?,
            })
        });
        Ok(Self {
            blocks: blocks.collect::<Result<_>>()?,
            norm_out: Norm::new(config, outer, &vb.pp("conv_norm_out"))?,
            conv_out: conv(outer, config.out_channels, 3, 1, vb.pp("conv_out"))?,
            out_channels: config.out_channels,
        })
    }

    /// `hidden`: (1, channels, H, W) out of the middle. Returns (1, 3, 8·H, 8·W).
    pub(super) fn forward(&self, hidden: Tensor) -> Result<Tensor> {
        let mut hidden = hidden;
        for block in &self.blocks {
            for resnet in &block.resnets {
                hidden = resnet.forward(&hidden)?;
            }
            if let Some(upsampler) = &block.upsampler {
                hidden = upsampled(&hidden, upsampler)?;
            }
        }
        let affine = self.norm_out.measured(&hidden)?;
        let (_, _, height, width) = hidden.dims4()?;
        let out = (self.out_channels, height, width);
        banded(&hidden, out, 1, |band| self.conv_out.forward(&activated(band, &affine)?))
    }
}

impl Resnet {
    fn new(config: &VaeConfig, in_channels: usize, out_channels: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: Norm::new(config, in_channels, &vb.pp("norm1"))?,
            conv1: conv(in_channels, out_channels, 3, 1, vb.pp("conv1"))?,
            norm2: Norm::new(config, out_channels, &vb.pp("norm2"))?,
            conv2: conv(out_channels, out_channels, 3, 1, vb.pp("conv2"))?,
            shortcut: (in_channels != out_channels)
                .then(|| conv(in_channels, out_channels, 1, 1, vb.pp("conv_shortcut")))
                .transpose()?,
            out_channels,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = hidden.dims4()?;
        let out = (self.out_channels, height, width);
        let affine = self.norm1.measured(hidden)?;
        let inner = banded(hidden, out, 1, |band| self.conv1.forward(&activated(band, &affine)?))?;
        let affine = self.norm2.measured(&inner)?;
        let changed = banded(&inner, out, 1, |band| self.conv2.forward(&activated(band, &affine)?))?;
        drop(inner);
        match &self.shortcut {
            Some(shortcut) => sum(&banded(hidden, out, 0, |band| shortcut.forward(band))?, &changed),
            None => sum(hidden, &changed),
        }
    }
}

impl Norm {
    fn new(config: &VaeConfig, channels: usize, vb: &VarBuilder) -> Result<Self> {
        let number = |name| vb.get(channels, name)?.to_dtype(DType::F32);
        Ok(Self { groups: config.norm_num_groups, weight: number("weight")?, bias: number("bias")? })
    }

    /// Group by group: all of them at once would take two more tensors of the whole image. Row by row first: a GPU sums what becomes one
    /// number in one block, and each row in a block of its own.
    fn measured(&self, hidden: &Tensor) -> Result<Affine> {
        let (_, channels, height, width) = hidden.dims4()?;
        let in_group = channels / self.groups;
        let mut factors = Vec::new();
        let mut summands = Vec::new();
        for group in 0..self.groups {
            let part = if is_channels_last(hidden) {
                with_channels_last(hidden)?.narrow(3, group * in_group, in_group)?.reshape((height, width * in_group))?
            } else {
                hidden.narrow(1, group * in_group, in_group)?.reshape((in_group * height, width))?
            };
            let part = part.to_dtype(DType::F32)?;
            let mean = part.mean(1)?.mean_all()?;
            let variance = part.broadcast_sub(&mean)?.sqr()?.mean(1)?.mean_all()?;
            let factor = (variance + VaeConfig::NORM_EPS)?.sqrt()?.recip()?;
            let factor = self.weight.narrow(0, group * in_group, in_group)?.broadcast_mul(&factor)?;
            summands.push((self.bias.narrow(0, group * in_group, in_group)? - factor.broadcast_mul(&mean)?)?);
            factors.push(factor);
        }
        let shaped = |parts: &[Tensor]| Tensor::cat(parts, 0)?.reshape((1, channels, 1, 1));
        Ok((shaped(&factors)?, shaped(&summands)?))
    }
}

/// It lies as `band` does.
fn activated(band: &Tensor, (factor, summand): &Affine) -> Result<Tensor> {
    let activated = |band: &Tensor, factor: &Tensor, summand: &Tensor| {
        band.to_dtype(DType::F32)?.broadcast_mul(factor)?.broadcast_add(summand)?.silu()?.to_dtype(band.dtype())
    };
    if is_channels_last(band) {
        let [band, factor, summand] = [with_channels_last(band)?, with_channels_last(factor)?, with_channels_last(summand)?];
        return with_channels_first(&activated(&band, &factor, &summand)?);
    }
    activated(band, factor, summand)
}

/// `layer` over `input` (1, in, H, W), as many rows at a time as fit into a band and `border` more on each side, which it may look at;
/// `out`: (channels, height, width) of what comes out.
fn banded(
    input: &Tensor,
    out: (usize, usize, usize),
    border: usize,
    layer: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (_, channels, height, width) = input.dims4()?;
    let (out_channels, out_height, out_width) = out;
    let scale = out_height / height;
    let zeros = |shape| Tensor::zeros(shape, input.dtype(), input.device());
    // As the bands lie, which is known when there is one.
    let mut whole = None;
    let rows = (BAND / (channels.max(out_channels) * width * scale * scale)).clamp(1, height);
    for top in (0..height).step_by(rows) {
        let rows = rows.min(height - top);
        let above = border.min(top);
        let below = border.min(height - top - rows);
        let band = layer(&input.narrow(2, top - above, above + rows + below)?)?;
        let kept = band.narrow(2, above * scale, rows * scale)?;
        let is_last = is_channels_last(&kept);
        let (kept, row_side) = if is_last { (with_channels_last(&kept)?, 1) } else { (kept.contiguous()?, 2) };
        if whole.is_none() {
            let last = (1, out_height, out_width, out_channels);
            whole = Some((zeros(if is_last { last } else { (1, out_channels, out_height, out_width) })?, is_last));
        }
        if let Some((whole, _)) = &whole {
            whole.slice_set(&kept, row_side, top * scale)?;
        }
    }
    match whole {
        Some((whole, true)) => with_channels_first(&whole),
        Some((whole, false)) => Ok(whole),
        None => zeros((1, out_channels, out_height, out_width)),
    }
}

fn upsampled(hidden: &Tensor, conv: &Conv) -> Result<Tensor> {
    let (_, channels, height, width) = hidden.dims4()?;
    banded(hidden, (channels, 2 * height, 2 * width), 1, |band| {
        let (_, _, rows, columns) = band.dims4()?;
        conv.forward_enlarged(band, 2 * rows, 2 * columns)
    })
}
