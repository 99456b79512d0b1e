//! Attention, as the UNet's transformers and the VAE's middle use it.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::softmax_last_dim;

use crate::engine::layers::{Linear, attend_on_cpu, linear, linear_b};

/// Scores of more numbers than this are computed a few heads at a time (256 MiB in f32).
const MAX_SCORES: usize = 1 << 26;

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
        let (batch, tokens, channels) = hidden.dims3()?;
        let (query, key, value) = (self.to_q.forward(hidden)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        if let Some(attended) = attend_on_cpu(&query, &key, &value, self.heads, false)? {
            return Ok(attended);
        }
        let scale = ((channels / self.heads) as f64).sqrt().recip();
        let query = self.split_heads(&(query * scale)?)?;
        let (key, value) = (self.split_heads(&key)?, self.split_heads(&value)?);
        attend(&query, &key, &value)?
            .reshape((batch, self.heads, tokens, channels / self.heads))?
            .transpose(1, 2)?
            .reshape((batch, tokens, channels))
    }

    /// (B, T, channels) to (B·heads, T, channels/heads).
    fn split_heads(&self, tensor: &Tensor) -> Result<Tensor> {
        let (batch, tokens, channels) = tensor.dims3()?;
        tensor.reshape((batch, tokens, self.heads, channels / self.heads))?.transpose(1, 2)?.reshape((
            batch * self.heads,
            tokens,
            channels / self.heads,
        ))
    }
}

/// softmax(query·keyᵀ)·value over (N, T, D), (N, S, D), (N, S, D), the queries scaled already.
fn attend(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    let (count, tokens, _) = query.dims3()?;
    let at_once = (MAX_SCORES / (tokens * key.dim(1)?)).max(1);
    if count <= at_once {
        return softmax_last_dim(&query.matmul(&key.t()?)?)?.matmul(value);
    }
    let mut parts = Vec::with_capacity(count.div_ceil(at_once));
    for start in (0..count).step_by(at_once) {
        let part = |tensor: &Tensor| tensor.narrow(0, start, at_once.min(count - start));
        parts.push(attend(&part(query)?, &part(key)?, &part(value)?)?);
    }
    Tensor::cat(&parts, 0)
}
