//! The blocks of the transformer: those in which text and image have layers of their own, and those that both go through as one.

use atelier_kernels::elementwise::Gate;
use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::TransformerConfig;
use crate::activations::{gated, gated_joined};
use crate::attention::attend;
use crate::flow::rope::Rope;
use crate::layers::{Linear, linear_b};
use crate::qwen::modulated::{Counts, Modulation, Parts, add_gated, add_gated_modulate, modulate};
use crate::rotary::{joined_normed_and_turned, normed_and_turned};

/// diffusers' `Flux2TransformerBlock`; what modulates it is of all such blocks.
pub(super) struct DoubleBlock {
    text: Stream,
    image: Stream,
    heads: usize,
    eps: f32,
}

/// The layers of text or image.
struct Stream {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm_query: Tensor,
    norm_key: Tensor,
    feed_forward: FeedForward,
}

/// Gate, values and what joins them.
struct FeedForward {
    gate: Linear,
    values: Linear,
    down: Linear,
}

/// What every double block gets of time: before attention, and before the feed-forward layer.
pub(super) struct DoubleModulation {
    pub(super) text: [Modulation; 2],
    pub(super) image: [Modulation; 2],
}

impl DoubleBlock {
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let text = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k"];
        let image = ["to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k"];
        Ok(Self {
            text: Stream::new(config, text, "ff_context", vb)?,
            image: Stream::new(config, image, "ff", vb)?,
            heads: config.num_attention_heads,
            eps: config.eps as f32,
        })
    }

    /// `tokens`: (1, S + T, width), the text's S tokens before the image's; `rope`: of all of them. Returns the same shape.
    pub(super) fn forward(
        &self,
        tokens: &Tensor,
        text_tokens: usize,
        modulation: &DoubleModulation,
        rope: &Rope,
    ) -> Result<Tensor> {
        let Self { text, image, heads, eps } = self;
        let counts = Counts { text: text_tokens, output: tokens.dim(1)? - text_tokens };
        // References are modulated as the output is.
        let parts = |half: usize| -> Parts<'_> {
            let of_image = &modulation.image[half];
            [&modulation.text[half], of_image, of_image]
        };
        let attended = {
            let modulated = modulate(tokens, counts, parts(0), *eps)?;
            let turned = |layers: [&Linear; 2], norms: [&Tensor; 2]| {
                let joined = joined(layers, &modulated, text_tokens)?;
                joined_normed_and_turned(&joined, (text_tokens, norms), *heads, *eps, (&rope.cos, &rope.sin))
            };
            let query = turned([&text.query, &image.query], [&text.norm_query, &image.norm_query])?;
            let key = turned([&text.key, &image.key], [&text.norm_key, &image.norm_key])?;
            attend(&query, &key, &joined([&text.value, &image.value], &modulated, text_tokens)?, *heads)?
        };
        let change = joined([&text.out, &image.out], &attended, text_tokens)?;
        let [tokens, modulated] = add_gated_modulate((tokens, &change), counts, [parts(0), parts(1)], *eps)?;
        let both = [&text.feed_forward, &image.feed_forward];
        let [of_text, of_image] = parted(&modulated, text_tokens)?;
        let layers = both.map(|layers| [&layers.values, &layers.gate]);
        let inner = gated_joined(Gate::Silu, [(layers[0], &of_text), (layers[1], &of_image)])?;
        let change = joined(both.map(|layers| &layers.down), &inner, text_tokens)?;
        add_gated(&tokens, &change, counts, parts(1))
    }
}

impl Stream {
    /// `names`: of query, key, value, out and both norms; `vb` stands at the block's own names.
    fn new(config: &TransformerConfig, names: [&str; 6], feed_forward: &str, vb: &VarBuilder) -> Result<Self> {
        let width = config.width();
        let attention = vb.pp("attn");
        let [query, key, value, out, norm_query, norm_key] = names;
        let layer = |name: &str| linear_b(width, width, false, attention.pp(name));
        let norm = |name: &str| attention.get(config.attention_head_dim, &format!("{name}.weight"));
        let feed_forward = vb.pp(feed_forward);
        let both = linear_b(width, 2 * config.inner(), false, feed_forward.pp("linear_in"))?;
        Ok(Self {
            query: layer(query)?,
            key: layer(key)?,
            value: layer(value)?,
            out: layer(out)?,
            norm_query: norm(norm_query)?,
            norm_key: norm(norm_key)?,
            feed_forward: FeedForward {
                gate: both.rows(0, config.inner())?,
                values: both.rows(config.inner(), config.inner())?,
                down: linear_b(config.inner(), width, false, feed_forward.pp("linear_out"))?,
            },
        })
    }
}

/// What the text's layer makes of the first tokens, and behind it what the image's makes of the others.
fn joined([text, image]: [&Linear; 2], tokens: &Tensor, text_tokens: usize) -> Result<Tensor> {
    let [of_text, of_image] = parted(tokens, text_tokens)?;
    Linear::joined([(text, &of_text), (image, &of_image)], false)
}

/// The text's tokens, which are the first, and the others.
fn parted(tokens: &Tensor, text_tokens: usize) -> Result<[Tensor; 2]> {
    let of_text = tokens.narrow(1, 0, text_tokens)?.contiguous()?;
    let of_image = tokens.narrow(1, text_tokens, tokens.dim(1)? - text_tokens)?.contiguous()?;
    Ok([of_text, of_image])
}

/// diffusers' `Flux2SingleTransformerBlock`, whose first five layers are one there; what modulates it is of all such blocks.
pub(super) struct SingleBlock {
    query: Linear,
    key: Linear,
    value: Linear,
    gate: Linear,
    values: Linear,
    norm_query: Tensor,
    norm_key: Tensor,
    /// Of what attention gave and the feed-forward layer's hidden values, joined.
    out: Linear,
    heads: usize,
    eps: f32,
}

impl SingleBlock {
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let width = config.width();
        let inner = config.inner();
        let attention = vb.pp("attn");
        let norm = |name: &str| attention.get(config.attention_head_dim, &format!("{name}.weight"));
        let all = linear_b(width, 3 * width + 2 * inner, false, attention.pp("to_qkv_mlp_proj"))?;
        Ok(Self {
            query: all.rows(0, width)?,
            key: all.rows(width, width)?,
            value: all.rows(2 * width, width)?,
            gate: all.rows(3 * width, inner)?,
            values: all.rows(3 * width + inner, inner)?,
            norm_query: norm("norm_q")?,
            norm_key: norm("norm_k")?,
            out: linear_b(width + inner, width, false, attention.pp("to_out"))?,
            heads: config.num_attention_heads,
            eps: config.eps as f32,
        })
    }

    /// `hidden`: (1, S + T, width), text before image. Returns the same shape.
    pub(super) fn forward(&self, hidden: &Tensor, modulation: &Modulation, rope: &Rope) -> Result<Tensor> {
        let normed = modulation.normed(hidden, self.eps)?;
        let turned = |layer: &Linear, norm: &Tensor| {
            normed_and_turned(&layer.forward(&normed)?, norm, self.heads, self.eps, (&rope.cos, &rope.sin))
        };
        let query = turned(&self.query, &self.norm_query)?;
        let key = turned(&self.key, &self.norm_key)?;
        let attended = attend(&query, &key, &self.value.forward(&normed)?, self.heads)?;
        let inner = gated(Gate::Silu, [&self.values, &self.gate], &normed)?;
        modulation.add_gated(hidden, &self.out.forward(&Tensor::cat(&[&attended, &inner], D::Minus1)?)?)
    }
}
