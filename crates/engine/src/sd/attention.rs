//! Attention, as the UNet's transformers and the VAE's middle use it.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::attention::{attend, attend_joint};
use crate::layers::{Linear, linear, linear_b};
use crate::weights::joint::JOINT;

/// diffusers' `Attention`: queries from the hidden states, keys and values from the context.
pub(super) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    /// All three in one product, where they lie so.
    to_qkv: Option<Linear>,
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
            to_qkv: vb
                .contains_tensor(&format!("{JOINT}.weight"))
                .then(|| linear_b(channels, 3 * channels, bias, vb.pp(JOINT)))
                .transpose()?,
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

    /// `before` (B, T, channels) + [`Self::forward`] of `hidden` to itself.
    pub(super) fn add_to_itself(&self, before: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        match &self.to_qkv {
            Some(to_qkv) => self.to_out.add_to(before, &attend_joint(&to_qkv.forward(hidden)?, self.heads)?),
            None => self.add_to(before, hidden, &self.context(hidden)?, &[]),
        }
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
