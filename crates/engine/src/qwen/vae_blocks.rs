//! What encoder and decoder of the autoencoder are made of, for single images.
//!
//! The model is made for films: its kernels have three slices in time, and an image is a film's first frame, before which there is
//! nothing but zeros. So only a kernel's last slice ever sees anything, the layers between frames are skipped
//! (diffusers' `QwenImageCausalConv3d`, `QwenImageResample`), and all of it is a model of two dimensions.

use candle_core::{D, Error, Result, Tensor};
use candle_nn::VarBuilder;

use crate::attention::attend;
use crate::layers::{ChannelNorm, Conv, Linear, transposed};

/// The convolution at `vb`, (out, in, kernel) a side and as many in time, reduced to the last slice in time.
pub(super) fn causal_conv(in_channels: usize, out_channels: usize, kernel: usize, vb: &VarBuilder) -> Result<Conv> {
    let weight = vb.get((out_channels, in_channels, kernel, kernel, kernel), "weight")?;
    let last = weight.narrow(2, kernel - 1, 1)?.squeeze(2)?.contiguous()?;
    Conv::of(last, vb.get(out_channels, "bias")?, 1)
}

/// A plain convolution of 3x3.
pub(super) fn conv(in_channels: usize, out_channels: usize, stride: usize, vb: &VarBuilder) -> Result<Conv> {
    Conv::of(vb.get((out_channels, in_channels, 3, 3), "weight")?, vb.get(out_channels, "bias")?, stride)
}

/// A 1x1 convolution as the linear layer that it is.
fn pointwise(in_channels: usize, out_channels: usize, vb: &VarBuilder) -> Result<Linear> {
    let weight = vb.get((out_channels, in_channels, 1, 1), "weight")?.reshape((out_channels, in_channels))?;
    Ok(Linear::of(weight, Some(vb.get(out_channels, "bias")?)))
}

/// The norm at `vb`.
pub(super) fn norm(channels: usize, vb: &VarBuilder) -> Result<ChannelNorm> {
    ChannelNorm::of(&vb.get((channels, 1, 1, 1), "gamma")?.flatten_all()?)
}

/// The norms of attention have gammas of one dimension less.
fn norm_of_attention(channels: usize, vb: &VarBuilder) -> Result<ChannelNorm> {
    ChannelNorm::of(&vb.get((channels, 1, 1), "gamma")?.flatten_all()?)
}

pub(super) struct ResidualBlock {
    norm1: ChannelNorm,
    conv1: Conv,
    norm2: ChannelNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl ResidualBlock {
    pub(super) fn new(in_channels: usize, out_channels: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            norm1: norm(in_channels, &vb.pp("norm1"))?,
            conv1: causal_conv(in_channels, out_channels, 3, &vb.pp("conv1"))?,
            norm2: norm(out_channels, &vb.pp("norm2"))?,
            conv2: causal_conv(out_channels, out_channels, 3, &vb.pp("conv2"))?,
            shortcut: (in_channels != out_channels)
                .then(|| causal_conv(in_channels, out_channels, 1, &vb.pp("conv_shortcut")))
                .transpose()?,
        })
    }

    /// (B, in, H, W) to (B, out, H, W).
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let inner = self.norm2.forward_silu(&self.conv1.forward(&self.norm1.forward_silu(hidden)?)?)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.add_to(&shortcut.forward(hidden)?, &inner),
            None => self.conv2.add_to(hidden, &inner),
        }
    }
}

/// Attention of one head over all places between two residual blocks.
pub(super) struct MidBlock {
    before: ResidualBlock,
    norm: ChannelNorm,
    to_qkv: Linear,
    proj: Linear,
    after: ResidualBlock,
}

impl MidBlock {
    pub(super) fn new(channels: usize, vb: &VarBuilder) -> Result<Self> {
        let attention = vb.pp("attentions.0");
        Ok(Self {
            before: ResidualBlock::new(channels, channels, &vb.pp("resnets.0"))?,
            norm: norm_of_attention(channels, &attention.pp("norm"))?,
            to_qkv: pointwise(channels, 3 * channels, &attention.pp("to_qkv"))?,
            proj: pointwise(channels, channels, &attention.pp("proj"))?,
            after: ResidualBlock::new(channels, channels, &vb.pp("resnets.1"))?,
        })
    }

    /// (B, C, H, W) to the same.
    pub(super) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let hidden = self.before.forward(hidden)?;
        self.after.forward(&self.attend(&hidden)?)
    }

    fn attend(&self, hidden: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = hidden.dims4()?;
        let places = transposed(&self.norm.forward(hidden)?.flatten_from(2)?)?;
        let all = self.to_qkv.forward(&places)?;
        let [query, key, value] = all.chunk(3, D::Minus1)?.try_into().map_err(|_| Error::msg("queries, keys and values"))?;
        let attended = attend(&query.contiguous()?, &key.contiguous()?, &value.contiguous()?, 1)?;
        let projected = transposed(&self.proj.forward(&attended)?)?;
        projected.reshape((batch, channels, height, width))? + hidden
    }
}
