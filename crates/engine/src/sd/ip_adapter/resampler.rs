//! The projection of IP-Adapter Plus: learned queries look at all that the image encoder saw (the resampler of Flamingo, arXiv 2204.14198).

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

use crate::attention::attend;
use crate::layers::{LayerNorm, Linear, layer_norm, linear, linear_b};
use crate::weights::Shapes;

/// Of torch's `LayerNorm`, which no file states.
pub(super) const NORM_EPS: f64 = 1e-5;
/// Channels of a head: no file states them, and all have these.
const HEAD_CHANNELS: usize = 64;

/// Sizes of a [`Resampler`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResamplerConfig {
    /// Of the image encoder's states.
    pub(super) states: usize,
    pub(super) tokens: usize,
    hidden: usize,
    /// Of queries, keys and values: a multiple of [`HEAD_CHANNELS`].
    inner: usize,
    feed_forward: usize,
    layers: usize,
    pub(super) text_channels: usize,
}

impl ResamplerConfig {
    /// `shapes`: by the names of the file. None where there is no resampler.
    pub(super) fn of(shapes: &Shapes) -> Option<Self> {
        let of = |name: &str, dimension: usize| shapes.get(&format!("image_proj.{name}"))?.get(dimension).copied();
        let layers = (0..shapes.len()).take_while(|layer| of(&format!("layers.{layer}.0.to_q.weight"), 0).is_some()).count();
        let inner = of("layers.0.0.to_q.weight", 0)?;
        (inner > 0 && inner.is_multiple_of(HEAD_CHANNELS)).then_some(())?;
        Some(Self {
            states: of("proj_in.weight", 1)?,
            tokens: of("latents", 1)?,
            hidden: of("latents", 2)?,
            inner,
            feed_forward: of("layers.0.1.1.weight", 0)?,
            layers,
            text_channels: of("proj_out.weight", 0)?,
        })
    }
}

/// diffusers' `IPAdapterPlusImageProjection`.
pub(super) struct Resampler {
    /// (1, tokens, hidden): what is learned to be asked.
    latents: Tensor,
    proj_in: Linear,
    layers: Vec<Layer>,
    proj_out: Linear,
    norm_out: LayerNorm,
}

impl Resampler {
    /// `vb` stands at `image_proj`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &ResamplerConfig, vb: &VarBuilder) -> Result<Self> {
        let ResamplerConfig { states, tokens, hidden, text_channels, .. } = *config;
        let layers = vb.pp("layers");
        Ok(Self {
            latents: vb.get((1, tokens, hidden), "latents")?,
            proj_in: linear(states, hidden, vb.pp("proj_in"))?,
            layers: (0..config.layers).map(|index| Layer::new(config, &layers.pp(index))).collect::<Result<_>>()?,
            proj_out: linear(hidden, text_channels, vb.pp("proj_out"))?,
            norm_out: layer_norm(text_channels, NORM_EPS, &vb.pp("norm_out"))?,
        })
    }

    /// Of an image.
    pub(super) fn tokens(&self) -> usize {
        self.latents.dims()[1]
    }

    /// `states`: (N, places, hidden of the image encoder). Returns (N, tokens, text channels).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(&self, states: &Tensor) -> Result<Tensor> {
        let seen = self.proj_in.forward(states)?;
        let (_, tokens, hidden) = self.latents.dims3()?;
        let mut latents = self.latents.broadcast_as((seen.dim(0)?, tokens, hidden))?.contiguous()?;
        for layer in &self.layers {
            latents = layer.forward(&latents, &seen)?;
        }
        self.norm_out.forward(&self.proj_out.forward(&latents)?)
    }
}

/// Queries look at what was seen and at themselves; then two linear layers. Each stands behind a norm and beside a residual.
struct Layer {
    norm_seen: LayerNorm,
    norm_latents: LayerNorm,
    to_q: Linear,
    /// Keys, and then values.
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    /// `vb` stands at the layer, whose parts have numbers.
    fn new(config: &ResamplerConfig, vb: &VarBuilder) -> Result<Self> {
        let ResamplerConfig { hidden, inner, feed_forward, .. } = *config;
        let attention = vb.pp(0);
        let after = vb.pp(1);
        Ok(Self {
            norm_seen: layer_norm(hidden, NORM_EPS, &attention.pp("norm1"))?,
            norm_latents: layer_norm(hidden, NORM_EPS, &attention.pp("norm2"))?,
            to_q: linear_b(hidden, inner, false, attention.pp("to_q"))?,
            to_kv: linear_b(hidden, 2 * inner, false, attention.pp("to_kv"))?,
            to_out: linear_b(inner, hidden, false, attention.pp("to_out"))?,
            heads: inner / HEAD_CHANNELS,
            norm: layer_norm(hidden, NORM_EPS, &after.pp(0))?,
            fc1: linear_b(hidden, feed_forward, false, after.pp(1))?,
            fc2: linear_b(feed_forward, hidden, false, after.pp(3))?,
        })
    }

    /// `latents`: (N, tokens, hidden); `seen`: (N, places, hidden). Returns (N, tokens, hidden).
    fn forward(&self, latents: &Tensor, seen: &Tensor) -> Result<Tensor> {
        let normed = self.norm_latents.forward(latents)?;
        let looked_at = Tensor::cat(&[&self.norm_seen.forward(seen)?, &normed], 1)?;
        let keys_and_values = self.to_kv.forward(&looked_at)?.chunk(2, D::Minus1)?;
        let [key, value] = keys_and_values.as_slice() else { return Err(candle_core::Error::msg("keys and values are two")) };
        let attended = attend(&self.to_q.forward(&normed)?, &key.contiguous()?, &value.contiguous()?, self.heads)?;
        let latents = self.to_out.add_to(latents, &attended)?;
        let inner = self.fc1.forward(&self.norm.forward(&latents)?)?.gelu_erf()?;
        self.fc2.add_to(&latents, &inner)
    }
}
