//! A layer of CLIP's and ViT's encoders: attention, then two linear layers, each behind a norm and beside a residual.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Activation;
use crate::activations::quick_gelu;
use crate::attention::{attend, attend_causally};
use crate::layers::{LayerNorm, Linear, layer_norm, linear};

/// Sizes of a layer, and what it sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerConfig {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    /// Divides `hidden_size`.
    pub(crate) heads: usize,
    pub(crate) activation: Activation,
    pub(crate) layer_norm_eps: f64,
    /// Whether each place sees only those up to its own, as in text.
    pub(crate) causal: bool,
}

/// What a file calls the parts of a layer.
pub(crate) struct LayerNames {
    pub(crate) layer_norm1: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) out: &'static str,
    pub(crate) layer_norm2: &'static str,
    pub(crate) fc1: &'static str,
    pub(crate) fc2: &'static str,
}

impl LayerNames {
    /// transformers' `CLIPEncoderLayer`.
    pub(crate) const CLIP: Self = Self {
        layer_norm1: "layer_norm1",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        out: "self_attn.out_proj",
        layer_norm2: "layer_norm2",
        fc1: "mlp.fc1",
        fc2: "mlp.fc2",
    };
}

pub(crate) struct EncoderLayer {
    layer_norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    config: LayerConfig,
}

impl EncoderLayer {
    /// `vb` stands at the layer.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(crate) fn new(config: LayerConfig, names: &LayerNames, vb: &VarBuilder) -> Result<Self> {
        let LayerConfig { hidden_size: hidden, intermediate_size: intermediate, layer_norm_eps: eps, .. } = config;
        Ok(Self {
            layer_norm1: layer_norm(hidden, eps, &vb.pp(names.layer_norm1))?,
            query: linear(hidden, hidden, vb.pp(names.query))?,
            key: linear(hidden, hidden, vb.pp(names.key))?,
            value: linear(hidden, hidden, vb.pp(names.value))?,
            out: linear(hidden, hidden, vb.pp(names.out))?,
            layer_norm2: layer_norm(hidden, eps, &vb.pp(names.layer_norm2))?,
            fc1: linear(hidden, intermediate, vb.pp(names.fc1))?,
            fc2: linear(intermediate, hidden, vb.pp(names.fc2))?,
            config,
        })
    }

    /// `hidden`: (B, T, hidden). Returns the same shape.
    ///
    /// # Errors
    /// Those of the device.
    pub(crate) fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let attended = self.attend(&self.layer_norm1.forward(hidden)?)?;
        let hidden = self.out.add_to(hidden, &attended)?;
        let inner = self.fc1.forward(&self.layer_norm2.forward(&hidden)?)?;
        let inner = match self.config.activation {
            Activation::QuickGelu => quick_gelu(&inner)?,
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluNew => inner.gelu()?,
        };
        self.fc2.add_to(&hidden, &inner)
    }

    fn attend(&self, hidden: &Tensor) -> Result<Tensor> {
        let query = self.query.forward(hidden)?;
        let key = self.key.forward(hidden)?;
        let value = self.value.forward(hidden)?;
        let heads = self.config.heads;
        if self.config.causal { attend_causally(&query, &key, &value, heads) } else { attend(&query, &key, &value, heads) }
    }
}
