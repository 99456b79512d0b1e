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

/// What is looked at: a key and a value of each place, both (B, S, channels).
pub(super) struct Context {
    pub(super) key: Tensor,
    pub(super) value: Tensor,
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

    /// `states`: (B, S, context channels).
    pub(super) fn context(&self, states: &Tensor) -> Result<Context> {
        Ok(Context { key: self.to_k.forward(states)?, value: self.to_v.forward(states)? })
    }

    /// `hidden`: (B, T, channels). Returns (B, T, channels).
    pub(super) fn forward(&self, hidden: &Tensor, context: &Context) -> Result<Tensor> {
        self.to_out.forward(&self.attended(hidden, context, &[])?)
    }

    /// `before` (B, T, channels) + [`Self::forward`]; `prompts`: looked at by the same queries, each by itself, and summed (IP-Adapter, arXiv
    /// 2308.06721, equation 5).
    pub(super) fn add_to(&self, before: &Tensor, hidden: &Tensor, context: &Context, prompts: &[Context]) -> Result<Tensor> {
        self.to_out.add_to(before, &self.attended(hidden, context, prompts)?)
    }

    fn attended(&self, hidden: &Tensor, context: &Context, prompts: &[Context]) -> Result<Tensor> {
        let query = self.to_q.forward(hidden)?;
        let mut attended = attend(&query, &context.key, &context.value, self.heads)?;
        for Context { key, value } in prompts {
            attended = (attended + attend(&query, key, value, self.heads)?)?;
        }
        Ok(attended)
    }
}
