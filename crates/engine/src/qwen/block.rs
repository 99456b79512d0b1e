//! One block of the transformer: text and images attend to each other, each through layers of its own.

use candle_core::{Result, Tensor};
use candle_nn::ops::layer_norm;

use super::config::TransformerConfig;
use super::files::TransformerFiles;
use super::linear::Linear;
use super::modulation::{BlockModulation, Modulation};
use super::rope::Rope;
use crate::EngineError;
use crate::attention::attend;
use crate::device;
use crate::rotary::normed_and_turned;

/// Of every norm; diffusers has it in code, not in config.json.
pub(super) const NORM_EPS: f32 = 1e-6;

/// diffusers' `QwenImageTransformerBlock`, without the layers that only depend on time ([`super::conditionings`]).
pub(super) struct Block {
    image: Stream,
    text: Stream,
    heads: usize,
}

/// The layers of one of the two.
struct Stream {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm_query: Tensor,
    norm_key: Tensor,
    up: Linear,
    down: Linear,
}

/// How tokens are modulated: so many by the first, and those behind them by the second.
type Parts<'a> = (usize, [&'a Modulation; 2]);

impl Block {
    pub(super) fn new(
        config: &TransformerConfig,
        files: &TransformerFiles,
        index: usize,
    ) -> std::result::Result<Self, EngineError> {
        let names = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.norm_q", "attn.norm_k", "img_mlp"];
        let image = Stream::new(files, index, names)?;
        let names = [
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
            "attn.norm_added_q",
            "attn.norm_added_k",
            "txt_mlp",
        ];
        Ok(Self { image, text: Stream::new(files, index, names)?, heads: config.num_attention_heads })
    }

    /// `text`: (1, S, width); `image`: (1, T, width), the output's `output_tokens` first, then the references'. Returns both.
    pub(super) fn forward(
        &self,
        text: &Tensor,
        image: &Tensor,
        output_tokens: usize,
        conditioning: &BlockModulation,
        rope: &Rope,
    ) -> Result<(Tensor, Tensor)> {
        let text_tokens = text.dim(1)?;
        let image_tokens = image.dim(1)?;
        let image_parts = |half: usize| (output_tokens, [&conditioning.output[half], &conditioning.references[half]]);
        let text_parts = |half: usize| (text_tokens, [&conditioning.text[half]; 2]);

        let (queries, keys, values) = {
            let of_text = self.text.project(&modulate(text, text_parts(0))?, self.heads, rope.of(0, text_tokens)?)?;
            let of_image =
                self.image.project(&modulate(image, image_parts(0))?, self.heads, rope.of(text_tokens, image_tokens)?)?;
            let joined = |index: usize| Tensor::cat(&[&of_text[index], &of_image[index]], 1);
            (joined(0)?, joined(1)?, joined(2)?)
        };
        let attended = attend(&queries, &keys, &values, self.heads)?;
        let of_text = self.text.out.forward(&attended.narrow(1, 0, text_tokens)?.contiguous()?)?;
        let of_image = self.image.out.forward(&attended.narrow(1, text_tokens, image_tokens)?.contiguous()?)?;
        let text = add_gated(text, &of_text, text_parts(0))?;
        let image = add_gated(image, &of_image, image_parts(0))?;

        let of_text = self.text.feed_forward(&modulate(&text, text_parts(1))?)?;
        let of_image = self.image.feed_forward(&modulate(&image, image_parts(1))?)?;
        Ok((add_gated(&text, &of_text, text_parts(1))?, add_gated(&image, &of_image, image_parts(1))?))
    }
}

impl Stream {
    /// The names of query, key, value, out, both norms and the feed-forward layer.
    fn new(files: &TransformerFiles, index: usize, names: [&str; 7]) -> std::result::Result<Self, EngineError> {
        let block = format!("transformer_blocks.{index}");
        let linear = |name: &str| files.linear(&format!("{block}.{name}"));
        let [query, key, value, out, norm_query, norm_key, mlp] = names;
        Ok(Self {
            query: linear(query)?,
            key: linear(key)?,
            value: linear(value)?,
            out: linear(out)?,
            norm_query: files.tensor(&format!("{block}.{norm_query}.weight"))?,
            norm_key: files.tensor(&format!("{block}.{norm_key}.weight"))?,
            up: linear(&format!("{mlp}.net.0.proj"))?,
            down: linear(&format!("{mlp}.net.2"))?,
        })
    }

    /// Queries and keys, normed and turned, and values: (1, T, width) each.
    fn project(&self, hidden: &Tensor, heads: usize, (cos, sin): (Tensor, Tensor)) -> Result<[Tensor; 3]> {
        let turned = |tensor: &Tensor, norm: &Tensor| normed_and_turned(tensor, norm, heads, NORM_EPS, (&cos, &sin));
        let query = turned(&self.query.forward(hidden)?, &self.norm_query)?;
        let key = turned(&self.key.forward(hidden)?, &self.norm_key)?;
        Ok([query, key, self.value.forward(hidden)?])
    }

    fn feed_forward(&self, hidden: &Tensor) -> Result<Tensor> {
        // Candle's gelu is the one with tanh.
        self.down.forward(&self.up.forward(hidden)?.gelu()?)
    }
}

/// Layer norm without weights of its own, times 1 + scale, plus shift. `hidden`: (1, T, width).
fn modulate(hidden: &Tensor, (first, parts): Parts<'_>) -> Result<Tensor> {
    let changes = parts.map(|part| (&part.scale, &part.shift));
    device::modulate(hidden, first, changes, NORM_EPS).unwrap_or_else(|| {
        by_part(hidden, (first, parts), |place, tokens, modulation| {
            let part = hidden.narrow(1, place, tokens)?.contiguous()?;
            layer_norm(&part, &modulation.scale, &modulation.shift, NORM_EPS)
        })
    })
}

/// `hidden` + gate · `change`.
fn add_gated(hidden: &Tensor, change: &Tensor, (first, parts): Parts<'_>) -> Result<Tensor> {
    device::add_gated(hidden, change, first, parts.map(|part| &part.gate)).unwrap_or_else(|| {
        by_part(hidden, (first, parts), |place, tokens, modulation| {
            hidden.narrow(1, place, tokens)? + change.narrow(1, place, tokens)?.broadcast_mul(&modulation.gate)?
        })
    })
}

/// `compute`: of so many tokens from a place on, and what modulates them.
fn by_part(
    hidden: &Tensor,
    (first, [modulation, other]): Parts<'_>,
    compute: impl Fn(usize, usize, &Modulation) -> Result<Tensor>,
) -> Result<Tensor> {
    match hidden.dim(1)? - first {
        0 => compute(0, first, modulation),
        others => Tensor::cat(&[compute(0, first, modulation)?, compute(first, others, other)?], 1),
    }
}
