//! T5's encoder: tokens of a prompt to hidden states that see the whole of it.

use atelier_kernels::elementwise::Gate;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::{Embedding, Module, VarBuilder, embedding};
use serde::Deserialize;

use crate::activations::gated;
use crate::layers::{Linear, linear_b};

/// `text_encoder_2/config.json` of transformers' `T5EncoderModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct T5Config {
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Width of a head.
    pub d_kv: usize,
    pub d_ff: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    #[serde(default = "buckets")]
    pub relative_attention_num_buckets: usize,
    #[serde(default = "distance")]
    pub relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
}

impl T5Config {
    pub(super) fn check(&self) -> std::result::Result<(), &'static str> {
        let buckets = self.relative_attention_num_buckets;
        if buckets < 4 || !buckets.is_multiple_of(4) || self.relative_attention_max_distance <= buckets / 4 {
            return Err(
                "relative_attention_num_buckets must be a multiple of 4, and relative_attention_max_distance above its quarter",
            );
        }
        if self.num_heads * self.d_kv == 0 { Err("num_heads and d_kv must not be 0") } else { Ok(()) }
    }
}

/// transformers' `T5EncoderModel`.
pub struct T5Encoder {
    config: T5Config,
    shared: Embedding,
    /// A number for each bucket of distances and each head: (buckets, heads).
    distances: Embedding,
    blocks: Vec<Block>,
    norm: Tensor,
}

struct Block {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    feed_forward_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl T5Encoder {
    /// `vb` stands at the encoder's own names (`shared.weight`, `encoder.block.0...`).
    pub(super) fn new(config: &T5Config, vb: &VarBuilder) -> Result<Self> {
        let encoder = vb.pp("encoder");
        let first = encoder.pp("block.0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            shared: embedding(config.vocab_size, config.d_model, vb.pp("shared"))?,
            distances: embedding(config.relative_attention_num_buckets, config.num_heads, first)?,
            blocks: (0..config.num_layers)
                .map(|index| Block::new(config, &encoder.pp("block").pp(index)))
                .collect::<Result<_>>()?,
            norm: encoder.get(config.d_model, "final_layer_norm.weight")?,
            config: config.clone(),
        })
    }

    /// `tokens`: padding among them, which is looked at as well. Returns (1, tokens, `d_model`).
    pub(super) fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        let device = self.shared.embeddings().device();
        let eps = self.config.layer_norm_epsilon as f32;
        let ids = Tensor::from_vec(tokens.to_vec(), (1, tokens.len()), device)?;
        let bias = self.bias(tokens.len(), device)?;
        let mut hidden = self.shared.forward(&ids)?;
        for block in &self.blocks {
            hidden = block.forward(&hidden, &bias, &self.config)?;
        }
        rms_norm(&hidden, &self.norm, eps)
    }

    /// What is added to the scores of so many tokens: (heads, tokens, tokens), f32.
    fn bias(&self, tokens: usize, device: &Device) -> Result<Tensor> {
        let buckets = (0..tokens).flat_map(|query| (0..tokens).map(move |key| (query, key)));
        let buckets: Vec<u32> = buckets.map(|(query, key)| self.config.bucket(query, key)).collect();
        let bias = self.distances.forward(&Tensor::from_vec(buckets, (tokens, tokens), device)?)?;
        bias.permute((2, 0, 1))?.contiguous()?.to_dtype(DType::F32)
    }
}

impl T5Config {
    /// Near places have a bucket each, far ones share them by the logarithm of their distance; half of all are for what stands behind the query
    /// (`_relative_position_bucket`).
    fn bucket(&self, query: usize, key: usize) -> u32 {
        let half = self.relative_attention_num_buckets / 2;
        let exact = half / 2;
        let distance = query.abs_diff(key);
        let behind = if key > query { half } else { 0 };
        if distance < exact {
            return (behind + distance) as u32;
        }
        let scale = (self.relative_attention_max_distance as f64 / exact as f64).ln() as f32;
        let far = (distance as f32 / exact as f32).ln() / scale * (half - exact) as f32;
        (behind + (exact + far as usize).min(half - 1)) as u32
    }
}

impl Block {
    fn new(config: &T5Config, vb: &VarBuilder) -> Result<Self> {
        let inner = config.num_heads * config.d_kv;
        let model = config.d_model;
        let attention = vb.pp("layer.0.SelfAttention");
        let dense = vb.pp("layer.1.DenseReluDense");
        Ok(Self {
            attention_norm: vb.get(model, "layer.0.layer_norm.weight")?,
            query: linear_b(model, inner, false, attention.pp("q"))?,
            key: linear_b(model, inner, false, attention.pp("k"))?,
            value: linear_b(model, inner, false, attention.pp("v"))?,
            out: linear_b(inner, model, false, attention.pp("o"))?,
            feed_forward_norm: vb.get(model, "layer.1.layer_norm.weight")?,
            gate: linear_b(model, config.d_ff, false, dense.pp("wi_0"))?,
            up: linear_b(model, config.d_ff, false, dense.pp("wi_1"))?,
            down: linear_b(config.d_ff, model, false, dense.pp("wo"))?,
        })
    }

    fn forward(&self, hidden: &Tensor, bias: &Tensor, config: &T5Config) -> Result<Tensor> {
        let eps = config.layer_norm_epsilon as f32;
        let hidden = (hidden + self.attend(&rms_norm(hidden, &self.attention_norm, eps)?, bias, config.num_heads)?)?;
        let inner = rms_norm(&hidden, &self.feed_forward_norm, eps)?;
        hidden + self.down.forward(&gated(Gate::GeluTanh, [&self.up, &self.gate], &inner)?)?
    }

    /// Scores are not scaled; the softmax is in f32.
    fn attend(&self, hidden: &Tensor, bias: &Tensor, heads: usize) -> Result<Tensor> {
        let by_head = |tensor: Tensor| {
            let (_, tokens, channels) = tensor.dims3()?;
            tensor.reshape((tokens, heads, channels / heads))?.transpose(0, 1)?.contiguous()
        };
        let query = by_head(self.query.forward(hidden)?)?;
        let key = by_head(self.key.forward(hidden)?)?;
        let value = by_head(self.value.forward(hidden)?)?;
        let scores = (query.matmul(&key.transpose(1, 2)?)?.to_dtype(DType::F32)? + bias)?;
        let attended = softmax_last_dim(&scores)?.to_dtype(value.dtype())?.matmul(&value)?;
        let (_, tokens, width) = attended.dims3()?;
        self.out.forward(&attended.transpose(0, 1)?.reshape((1, tokens, heads * width))?)
    }
}

/// Ours of llama.cpp's names of the encoder's tensors (`gguf-py/gguf/tensor_mapping.py` of ggml-org/llama.cpp).
pub(super) fn gguf_name(name: &str) -> Option<String> {
    let module = match name.strip_suffix(".weight")? {
        "token_embd" => "shared".to_owned(),
        "enc.output_norm" => "encoder.final_layer_norm".to_owned(),
        inside => {
            let (block, part) = inside.strip_prefix("enc.blk.")?.split_once('.')?;
            let part = match part {
                "attn_norm" => "layer.0.layer_norm",
                "attn_q" => "layer.0.SelfAttention.q",
                "attn_k" => "layer.0.SelfAttention.k",
                "attn_v" => "layer.0.SelfAttention.v",
                "attn_o" => "layer.0.SelfAttention.o",
                "attn_rel_b" => "layer.0.SelfAttention.relative_attention_bias",
                "ffn_norm" => "layer.1.layer_norm",
                "ffn_gate" => "layer.1.DenseReluDense.wi_0",
                "ffn_up" => "layer.1.DenseReluDense.wi_1",
                "ffn_down" => "layer.1.DenseReluDense.wo",
                _ => return None,
            };
            format!("encoder.block.{block}.{part}")
        }
    };
    Some(format!("{module}.weight"))
}

fn buckets() -> usize {
    32
}

fn distance() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number is that of transformers' `T5Attention._relative_position_bucket`.
    #[test]
    fn far_places_share_buckets() {
        let config = T5Config {
            vocab_size: 1,
            d_model: 1,
            d_kv: 1,
            d_ff: 1,
            num_layers: 1,
            num_heads: 1,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
        };
        let of = |query, keys: &[usize]| keys.iter().map(|key| config.bucket(query, *key)).collect::<Vec<_>>();
        assert_eq!(of(0, &[0, 1, 7, 8, 11, 12, 16, 31, 63, 127, 255]), [0, 17, 23, 24, 24, 25, 26, 27, 29, 31, 31]);
        assert_eq!(of(255, &[254, 248, 247, 200, 0]), [1, 7, 8, 13, 15]);
    }
}
