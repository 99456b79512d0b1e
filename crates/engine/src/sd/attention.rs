//! Attention, as the UNet's transformers and the VAE's middle use it.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::attention::attend;
use crate::layers::{Linear, linear, linear_b};

/// diffusers' `Attention`: queries from the hidden states, keys and values from the context.
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

/// Widths of an [`Attention`].
#[derive(Clone, Copy)]
pub(super) struct AttentionConfig {
    pub(super) channels: usize,
    pub(super) context_channels: usize,
    pub(super) heads: usize,
    /// Whether queries, keys and values have a bias (the VAE's have).
    pub(super) bias: bool,
}

impl Attention {
    pub(super) fn new(config: AttentionConfig, vb: &VarBuilder) -> Result<Self> {
        let AttentionConfig { channels, context_channels, heads, bias } = config;
        Ok(Self {
            to_q: linear_b(channels, channels, bias, vb.pp("to_q"))?,
            to_k: linear_b(context_channels, channels, bias, vb.pp("to_k"))?,
            to_v: linear_b(context_channels, channels, bias, vb.pp("to_v"))?,
            to_out: linear(channels, channels, vb.pp("to_out.0"))?,
            heads,
        })
    }

    /// `hidden`: (B, T, channels); `context`: (B, S, context channels). Returns (B, T, channels).
    pub(super) fn forward(&self, hidden: &Tensor, context: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&self.attended(hidden, context)?)
    }

    /// `before` (B, T, channels) + [`Self::forward`].
    pub(super) fn add_to(&self, before: &Tensor, hidden: &Tensor, context: &Tensor) -> Result<Tensor> {
        self.to_out.add_to(before, &self.attended(hidden, context)?)
    }

    fn attended(&self, hidden: &Tensor, context: &Tensor) -> Result<Tensor> {
        let query = self.to_q.forward(hidden)?;
        let key = self.to_k.forward(context)?;
        let value = self.to_v.forward(context)?;
        attend(&query, &key, &value, self.heads)
    }
}
