//! The residual block that UNet and VAE are made of.

use candle_core::{Error, Result, Tensor};
use candle_nn::VarBuilder;

use crate::layers::{Conv, GroupNorm, Linear, conv, group_norm, linear};

/// diffusers' `ResnetBlock2D`: norm, silu, conv, plus the time, norm, silu, conv, plus the input.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv,
    conv_shortcut: Option<Conv>,
    out_channels: usize,
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
        Ok(Self {
            norm1: group_norm(groups, in_channels, eps, &vb.pp("norm1"))?,
            conv1: conv(in_channels, out_channels, 3, 1, vb.pp("conv1"))?,
            time_emb_proj: time_channels.map(|channels| linear(channels, out_channels, vb.pp("time_emb_proj"))).transpose()?,
            norm2: group_norm(groups, out_channels, eps, &vb.pp("norm2"))?,
            conv2: conv(out_channels, out_channels, 3, 1, vb.pp("conv2"))?,
            conv_shortcut: (in_channels != out_channels)
                .then(|| conv(in_channels, out_channels, 1, 1, vb.pp("conv_shortcut")))
                .transpose()?,
            out_channels,
        })
    }

    /// `hidden`: (B, in, H, W); `raised`: what [`Self::raised`] has made of the step's time. Returns (B, out, H, W).
    pub(super) fn forward(&self, hidden: &Tensor, raised: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.norm1.forward_silu(hidden)?;
        let inner = match raised {
            Some(raised) => self.conv1.forward_raised(&normed, raised)?,
            None => self.conv1.forward(&normed)?,
        };
        let normed = self.norm2.forward_silu(&inner)?;
        match &self.conv_shortcut {
            Some(shortcut) => self.conv2.add_to(&shortcut.forward(hidden)?, &normed),
            None => self.conv2.add_to(hidden, &normed),
        }
    }

    /// Whether what comes out has its channels last in memory.
    pub(super) fn is_channels_last(&self) -> bool {
        self.conv2.is_channels_last()
    }

    pub(super) fn out_channels(&self) -> usize {
        self.out_channels
    }

    /// What the block adds to its channels at each of R times: (R, out). `time`: (R, time channels), after silu.
    pub(super) fn raised(&self, time: &Tensor) -> Result<Tensor> {
        let projection = self.time_emb_proj.as_ref().ok_or_else(|| Error::msg("a VAE's residual blocks know no time"))?;
        self.conv1.raised(&projection.forward(time)?)
    }
}
