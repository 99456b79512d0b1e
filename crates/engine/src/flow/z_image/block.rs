//! One layer of the transformer: attention and a feed-forward layer, each normed before and behind.

use atelier_kernels::elementwise::Gate;
use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;
use candle_nn::ops::rms_norm;

use super::config::TransformerConfig;
use crate::activations::gated;
use crate::attention::attend;
use crate::flow::rope::Rope;
use crate::layers::{Linear, linear, linear_b};
use crate::rotary::normed_and_turned;

/// Of the norms of queries and keys; diffusers has it in code, not in config.json.
const HEAD_NORM_EPS: f32 = 1e-5;

/// diffusers' `ZImageTransformerBlock`.
pub(super) struct Block {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm_q: Tensor,
    norm_k: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
    norms: Norms,
    /// None in the layers that the text alone goes through.
    modulation: Option<Linear>,
    heads: usize,
    eps: f32,
}

/// The weights of a layer's norms, (dim,) each, as they are or scaled and gated.
#[derive(Clone)]
pub(super) struct Norms {
    before_attention: Tensor,
    behind_attention: Tensor,
    before_feed_forward: Tensor,
    behind_feed_forward: Tensor,
}

impl Block {
    /// `vb` stands at the layer's own names; `is_modulated`: whether it gets something of time.
    pub(super) fn new(config: &TransformerConfig, is_modulated: bool, vb: &VarBuilder) -> Result<Self> {
        let dim = config.dim;
        let inner = config.feed_forward_width();
        let attention = vb.pp("attention");
        let feed_forward = vb.pp("feed_forward");
        let norm = |name: &str| vb.get(dim, &format!("{name}.weight"));
        let modulation = is_modulated.then(|| linear(config.time_width(), 4 * dim, vb.pp("adaLN_modulation.0")));
        Ok(Self {
            to_q: linear_b(dim, dim, false, attention.pp("to_q"))?,
            to_k: linear_b(dim, dim, false, attention.pp("to_k"))?,
            to_v: linear_b(dim, dim, false, attention.pp("to_v"))?,
            to_out: linear_b(dim, dim, false, attention.pp("to_out.0"))?,
            norm_q: attention.get(dim / config.n_heads, "norm_q.weight")?,
            norm_k: attention.get(dim / config.n_heads, "norm_k.weight")?,
            gate: linear_b(dim, inner, false, feed_forward.pp("w1"))?,
            up: linear_b(dim, inner, false, feed_forward.pp("w3"))?,
            down: linear_b(inner, dim, false, feed_forward.pp("w2"))?,
            norms: Norms {
                before_attention: norm("attention_norm1")?,
                behind_attention: norm("attention_norm2")?,
                before_feed_forward: norm("ffn_norm1")?,
                behind_feed_forward: norm("ffn_norm2")?,
            },
            modulation: modulation.transpose()?,
            heads: config.n_heads,
            eps: config.norm_eps as f32,
        })
    }

    /// `time`: (1, time width). Scales and gates stand next to norms' weights only, so they become one: a layer of these norms is the modulated one.
    pub(super) fn norms(&self, time: &Tensor) -> Result<Norms> {
        let Some(modulation) = &self.modulation else { return Ok(self.norms.clone()) };
        let parts = modulation.forward(time)?.flatten_all()?.chunk(4, D::Minus1)?;
        let scaled = |weight: &Tensor, scale: &Tensor| weight * (scale + 1.0)?;
        Ok(Norms {
            before_attention: scaled(&self.norms.before_attention, &parts[0])?,
            behind_attention: (&self.norms.behind_attention * parts[1].tanh()?)?,
            before_feed_forward: scaled(&self.norms.before_feed_forward, &parts[2])?,
            behind_feed_forward: (&self.norms.behind_feed_forward * parts[3].tanh()?)?,
        })
    }

    /// Those of a layer that gets nothing of time.
    pub(super) fn own_norms(&self) -> &Norms {
        &self.norms
    }

    /// `hidden`: (1, T, dim), as many as `rope` has angles for. Returns the same shape.
    pub(super) fn forward(&self, hidden: &Tensor, norms: &Norms, rope: &Rope) -> Result<Tensor> {
        let attended = self.attend(&rms_norm(hidden, &norms.before_attention, self.eps)?, rope)?;
        let hidden = (hidden + rms_norm(&attended, &norms.behind_attention, self.eps)?)?;
        let inner = rms_norm(&hidden, &norms.before_feed_forward, self.eps)?;
        let gated = gated(Gate::Silu, [&self.up, &self.gate], &inner)?;
        hidden + rms_norm(&self.down.forward(&gated)?, &norms.behind_feed_forward, self.eps)?
    }

    fn attend(&self, hidden: &Tensor, rope: &Rope) -> Result<Tensor> {
        let angles = (&rope.cos, &rope.sin);
        let turned = |tensor: &Tensor, norm: &Tensor| normed_and_turned(tensor, norm, self.heads, HEAD_NORM_EPS, angles);
        let query = turned(&self.to_q.forward(hidden)?, &self.norm_q)?;
        let key = turned(&self.to_k.forward(hidden)?, &self.norm_k)?;
        self.to_out.forward(&attend(&query, &key, &self.to_v.forward(hidden)?, self.heads)?)
    }
}
