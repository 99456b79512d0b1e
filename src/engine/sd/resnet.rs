//! The residual block that UNet and VAE are made of.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, Module, VarBuilder, conv2d, group_norm, linear};

use super::conv::Conv3x3;

/// diffusers' `ResnetBlock2D`: norm, silu, conv, plus the time, norm, silu, conv, plus the input.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv3x3,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv3x3,
    conv_shortcut: Option<Conv2d>,
}

/// What all residual blocks of one model share.
#[derive(Clone, Copy)]
pub(super) struct ResnetConfig {
    pub(super) groups: usize,
    pub(super) eps: f64,
    /// Width of the time embedding; the VAE has none.
    pub(super) time_channels: Option<usize>,
}

impl ResnetBlock {
    pub(super) fn new(in_channels: usize, out_channels: usize, config: ResnetConfig, vb: &VarBuilder) -> Result<Self> {
        let ResnetConfig { groups, eps, time_channels } = config;
        let time = |channels| linear(channels, out_channels, vb.pp("time_emb_proj"));
        let shortcut = || conv2d(in_channels, out_channels, 1, Conv2dConfig::default(), vb.pp("conv_shortcut"));
        Ok(Self {
            norm1: group_norm(groups, in_channels, eps, vb.pp("norm1"))?,
            conv1: Conv3x3::new(in_channels, out_channels, 1, vb.pp("conv1"))?,
            time_emb_proj: time_channels.map(time).transpose()?,
            norm2: group_norm(groups, out_channels, eps, vb.pp("norm2"))?,
            conv2: Conv3x3::new(out_channels, out_channels, 1, vb.pp("conv2"))?,
            conv_shortcut: (in_channels != out_channels).then(shortcut).transpose()?,
        })
    }

    /// `hidden`: (B, in, H, W); `time`: (B, time channels), after silu. Returns (B, out, H, W).
    pub(super) fn forward(&self, hidden: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut inner = self.conv1.forward(&self.norm1.forward(hidden)?.silu()?)?;
        if let (Some(time), Some(projection)) = (time, &self.time_emb_proj) {
            let (batch, channels, ..) = inner.dims4()?;
            inner = inner.broadcast_add(&projection.forward(time)?.reshape((batch, channels, 1, 1))?)?;
        }
        let inner = self.conv2.forward(&self.norm2.forward(&inner)?.silu()?)?;
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(hidden)? + inner,
            None => hidden + inner,
        }
    }
}
