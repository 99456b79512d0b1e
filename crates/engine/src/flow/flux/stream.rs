//! Layers that a block has for text and image each, and how time changes what goes into them.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::TransformerConfig;
use crate::flow::rope::Rope;
use crate::layers::{Linear, linear};
use crate::qwen::modulated::Modulation;
use crate::rotary::{joined_normed_and_turned, normed_and_turned};

/// Of every norm; diffusers has it in code, not in config.json.
pub(super) const NORM_EPS: f32 = 1e-6;

/// Queries, keys and values of one stream.
pub(super) struct Projections {
    query: Linear,
    key: Linear,
    value: Linear,
    norm_query: Tensor,
    norm_key: Tensor,
    heads: usize,
}

impl Projections {
    /// `vb` stands at the attention's own names; `names`: of query, key, value and both norms.
    pub(super) fn new(config: &TransformerConfig, names: [&str; 5], vb: &VarBuilder) -> Result<Self> {
        let width = config.width();
        let [query, key, value, norm_query, norm_key] = names;
        let norm = |name: &str| vb.get(config.attention_head_dim, &format!("{name}.weight"));
        Ok(Self {
            query: linear(width, width, vb.pp(query))?,
            key: linear(width, width, vb.pp(key))?,
            value: linear(width, width, vb.pp(value))?,
            norm_query: norm(norm_query)?,
            norm_key: norm(norm_key)?,
            heads: config.num_attention_heads,
        })
    }

    /// Queries and keys, normed and turned, and values: (1, T, width) each.
    pub(super) fn forward(&self, hidden: &Tensor, rope: &Rope) -> Result<[Tensor; 3]> {
        let angles = (&rope.cos, &rope.sin);
        let turned = |tensor: &Tensor, norm: &Tensor| normed_and_turned(tensor, norm, self.heads, NORM_EPS, angles);
        let query = turned(&self.query.forward(hidden)?, &self.norm_query)?;
        let key = turned(&self.key.forward(hidden)?, &self.norm_key)?;
        Ok([query, key, self.value.forward(hidden)?])
    }

    /// [`Self::forward`] of two streams behind each other, each with what it gets; `rope`: of the tokens of both.
    fn joined(both: [(&Self, &Tensor); 2], rope: &Rope) -> Result<[Tensor; 3]> {
        let [(first, to_first), (second, to_second)] = both;
        let tokens = to_first.dim(1)?;
        let turned = |layers: [&Linear; 2], norms: [&Tensor; 2]| {
            let joined = Linear::joined([(layers[0], to_first), (layers[1], to_second)], false)?;
            joined_normed_and_turned(&joined, (tokens, norms), first.heads, NORM_EPS, (&rope.cos, &rope.sin))
        };
        let query = turned([&first.query, &second.query], [&first.norm_query, &second.norm_query])?;
        let key = turned([&first.key, &second.key], [&first.norm_key, &second.norm_key])?;
        Ok([query, key, Linear::joined([(&first.value, to_first), (&second.value, to_second)], false)?])
    }
}

/// What text or image goes through by itself in a block.
pub(super) struct Stream {
    modulation: Linear,
    projections: Projections,
    out: Linear,
    up: Linear,
    down: Linear,
}

impl Stream {
    /// Of the image, or of the text (`context`).
    pub(super) fn new(config: &TransformerConfig, is_text: bool, vb: &VarBuilder) -> Result<Self> {
        let width = config.width();
        let attention = vb.pp("attn");
        let (modulation, projections, out, feed_forward) = if is_text {
            (
                "norm1_context",
                ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"],
                "to_add_out",
                "ff_context",
            )
        } else {
            ("norm1", ["to_q", "to_k", "to_v", "norm_q", "norm_k"], "to_out.0", "ff")
        };
        Ok(Self {
            modulation: linear(width, 6 * width, vb.pp(modulation).pp("linear"))?,
            projections: Projections::new(config, projections, &attention)?,
            out: linear(width, width, attention.pp(out))?,
            up: linear(width, 4 * width, vb.pp(feed_forward).pp("net.0.proj"))?,
            down: linear(4 * width, width, vb.pp(feed_forward).pp("net.2"))?,
        })
    }

    /// Before attention, and before the feed-forward layer.
    pub(super) fn modulations(&self, time: &Tensor) -> Result<Vec<Modulation>> {
        Modulation::of(&self.modulation, time, 2)
    }

    /// Queries, keys and values of two streams behind each other; `both`: each with its tokens and how they are modulated.
    pub(super) fn project(both: [(&Self, &Tensor, &[Modulation]); 2], rope: &Rope) -> Result<[Tensor; 3]> {
        let [(first, to_first, of_first), (second, to_second, of_second)] = both;
        let first = (&first.projections, &of_first[0].normed(to_first, NORM_EPS)?);
        let second = (&second.projections, &of_second[0].normed(to_second, NORM_EPS)?);
        Projections::joined([first, second], rope)
    }

    /// `attended`: what attention gave for this stream, (1, T, width).
    pub(super) fn finish(&self, hidden: &Tensor, attended: &Tensor, modulations: &[Modulation]) -> Result<Tensor> {
        let hidden = modulations[0].add_gated(hidden, &self.out.forward(&attended.contiguous()?)?)?;
        let inner = self.up.forward_gelu(&modulations[1].normed(&hidden, NORM_EPS)?)?;
        modulations[1].add_gated(&hidden, &self.down.forward(&inner)?)
    }
}
