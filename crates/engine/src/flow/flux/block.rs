//! The blocks of the transformer: those in which text and image have layers of their own, and those that both go through as one.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use super::config::TransformerConfig;
use super::stream::{NORM_EPS, Projections, Stream};
use crate::attention::attend;
use crate::flow::rope::Rope;
use crate::layers::{Linear, linear};
use crate::qwen::modulated::Modulation;

/// diffusers' `FluxTransformerBlock`.
pub(super) struct DoubleBlock {
    text: Stream,
    image: Stream,
    heads: usize,
}

/// How one such block is modulated at one time: text, then image.
pub(super) struct DoubleModulation {
    text: Vec<Modulation>,
    image: Vec<Modulation>,
}

impl DoubleBlock {
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let stream = |is_text| Stream::new(config, is_text, vb);
        Ok(Self { text: stream(true)?, image: stream(false)?, heads: config.num_attention_heads })
    }

    pub(super) fn modulation(&self, time: &Tensor) -> Result<DoubleModulation> {
        Ok(DoubleModulation { text: self.text.modulations(time)?, image: self.image.modulations(time)? })
    }

    /// `text`: (1, S, width); `image`: (1, T, width); `rope`: of both. Returns both.
    pub(super) fn forward(
        &self,
        text: &Tensor,
        image: &Tensor,
        modulation: &DoubleModulation,
        rope: &Rope,
    ) -> Result<(Tensor, Tensor)> {
        let text_tokens = text.dim(1)?;
        let both = [(&self.text, text, &*modulation.text), (&self.image, image, &*modulation.image)];
        let [query, key, value] = Stream::project(both, rope)?;
        let attended = attend(&query, &key, &value, self.heads)?;
        let text = self.text.finish(text, &attended.narrow(1, 0, text_tokens)?, &modulation.text)?;
        let image = self.image.finish(image, &attended.narrow(1, text_tokens, image.dim(1)?)?, &modulation.image)?;
        Ok((text, image))
    }
}

/// diffusers' `FluxSingleTransformerBlock`.
pub(super) struct SingleBlock {
    modulation: Linear,
    projections: Projections,
    up: Linear,
    /// Of what attention gave and the feed-forward layer's hidden values, joined.
    out: Linear,
    heads: usize,
}

impl SingleBlock {
    pub(super) fn new(config: &TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let width = config.width();
        let names = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
        Ok(Self {
            modulation: linear(width, 3 * width, vb.pp("norm.linear"))?,
            projections: Projections::new(config, names, &vb.pp("attn"))?,
            up: linear(width, 4 * width, vb.pp("proj_mlp"))?,
            out: linear(5 * width, width, vb.pp("proj_out"))?,
            heads: config.num_attention_heads,
        })
    }

    pub(super) fn modulation(&self, time: &Tensor) -> Result<Vec<Modulation>> {
        Modulation::of(&self.modulation, time, 1)
    }

    /// `hidden`: (1, S + T, width), text before image. Returns the same shape.
    pub(super) fn forward(&self, hidden: &Tensor, modulation: &[Modulation], rope: &Rope) -> Result<Tensor> {
        let normed = modulation[0].normed(hidden, NORM_EPS)?;
        let [query, key, value] = self.projections.forward(&normed, rope)?;
        let attended = attend(&query, &key, &value, self.heads)?;
        let inner = self.up.forward_gelu(&normed)?;
        modulation[0].add_gated(hidden, &self.out.forward(&Tensor::cat(&[&attended, &inner], D::Minus1)?)?)
    }
}
