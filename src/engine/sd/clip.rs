//! The CLIP text encoder: tokens of a prompt to the states the UNet attends to.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{sigmoid, softmax_last_dim};
use candle_nn::{Embedding, LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear};

use super::config::{Activation, TextEncoderConfig};

/// transformers' `CLIPTextModel` without its pooled output.
pub struct TextEncoder {
    token_embedding: Embedding,
    /// (positions, hidden).
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
}

impl TextEncoder {
    /// `vb` stands at the text encoder's own names (`text_model.embeddings...`).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: &TextEncoderConfig, vb: &VarBuilder) -> Result<Self> {
        let vb = vb.pp("text_model");
        let hidden = config.hidden_size;
        let layer = |index: usize| EncoderLayer::new(config, &vb.pp("encoder.layers").pp(index));
        Ok(Self {
            token_embedding: embedding(config.vocab_size, hidden, vb.pp("embeddings.token_embedding"))?,
            positions: vb.get((config.max_position_embeddings, hidden), "embeddings.position_embedding.weight")?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: layer_norm(hidden, config.layer_norm_eps, vb.pp("final_layer_norm"))?,
        })
    }

    /// `tokens`: (B, T), u32, T up to the model's positions. Returns (B, T, hidden), f32: the last hidden state,
    /// normed.
    ///
    /// # Errors
    /// When there are more tokens than positions, or a token outside the vocabulary.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (_, count) = tokens.dims2()?;
        let positions = self.positions.narrow(0, 0, count)?;
        let mask = causal_mask(count, tokens.device())?;
        let mut hidden = self.token_embedding.forward(tokens)?.broadcast_add(&positions)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &mask)?;
        }
        self.final_layer_norm.forward(&hidden)
    }
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    heads: usize,
}

impl EncoderLayer {
    fn new(config: &TextEncoderConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let attention = vb.pp("self_attn");
        Ok(Self {
            layer_norm1: layer_norm(hidden, config.layer_norm_eps, vb.pp("layer_norm1"))?,
            q_proj: linear(hidden, hidden, attention.pp("q_proj"))?,
            k_proj: linear(hidden, hidden, attention.pp("k_proj"))?,
            v_proj: linear(hidden, hidden, attention.pp("v_proj"))?,
            out_proj: linear(hidden, hidden, attention.pp("out_proj"))?,
            layer_norm2: layer_norm(hidden, config.layer_norm_eps, vb.pp("layer_norm2"))?,
            fc1: linear(hidden, config.intermediate_size, vb.pp("mlp.fc1"))?,
            fc2: linear(config.intermediate_size, hidden, vb.pp("mlp.fc2"))?,
            activation: config.hidden_act,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, hidden: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let hidden = (self.attend(&self.layer_norm1.forward(hidden)?, mask)? + hidden)?;
        let inner = self.fc1.forward(&self.layer_norm2.forward(&hidden)?)?;
        let inner = match self.activation {
            Activation::QuickGelu => (&inner * sigmoid(&(&inner * 1.702)?)?)?,
            Activation::Gelu => inner.gelu_erf()?,
        };
        self.fc2.forward(&inner)? + hidden
    }

    fn attend(&self, hidden: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (batch, tokens, channels) = hidden.dims3()?;
        let head_channels = channels / self.heads;
        let split = |tensor: Tensor| tensor.reshape((batch, tokens, self.heads, head_channels))?.transpose(1, 2)?.contiguous();
        let query = split((self.q_proj.forward(hidden)? * (head_channels as f64).sqrt().recip())?)?;
        let key = split(self.k_proj.forward(hidden)?)?;
        let value = split(self.v_proj.forward(hidden)?)?;
        let scores = query.matmul(&key.t()?)?.broadcast_add(mask)?;
        let attended = softmax_last_dim(&scores)?.matmul(&value)?;
        self.out_proj.forward(&attended.transpose(1, 2)?.reshape((batch, tokens, channels))?)
    }
}

/// (tokens, tokens), f32: nothing for what came before, minus infinity for what comes after.
fn causal_mask(tokens: usize, device: &Device) -> Result<Tensor> {
    let entry = |row, column| if column > row { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..tokens).flat_map(|row| (0..tokens).map(move |column| entry(row, column))).collect();
    Tensor::from_vec(mask, (tokens, tokens), device)?.to_dtype(DType::F32)
}
