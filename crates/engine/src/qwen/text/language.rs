//! The text model of Qwen2.5-VL, run once over a whole prompt: no cache, no logits.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope;
use candle_nn::{Embedding, Module, RmsNorm, VarBuilder, embedding, rms_norm};

use super::positions::Position;
use crate::activations::silu;
use crate::attention::causal_mask;
use crate::layers::{Linear, linear_b};
use crate::qwen::text_config::LanguageConfig;

/// transformers' `Qwen2_5_VLTextModel`.
pub struct LanguageModel {
    config: LanguageConfig,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
}

impl LanguageModel {
    /// `vb` stands at the model's own names (`embed_tokens.weight...`).
    pub(super) fn new(config: &LanguageConfig, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            embed_tokens: embedding(config.vocab_size, config.hidden_size, vb.pp("embed_tokens"))?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::new(config, &vb.pp("layers").pp(index)))
                .collect::<Result<_>>()?,
            norm: rms_norm(config.hidden_size, config.rms_norm_eps, vb.pp("norm"))?,
            config: config.clone(),
        })
    }

    /// `tokens`: below the vocabulary's size. Returns (tokens, hidden).
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let device = self.embed_tokens.embeddings().device();
        self.embed_tokens.forward(&Tensor::from_vec(tokens.to_vec(), tokens.len(), device)?)
    }

    /// `embedded`: (tokens, hidden), a position each. Returns (1, tokens, hidden): the last hidden state, normed.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn forward(&self, embedded: &Tensor, positions: &[Position]) -> Result<Tensor> {
        let device = embedded.device();
        let mut hidden = embedded.unsqueeze(0)?;
        let mask = causal_mask(0, positions.len(), positions.len(), device)?;
        let half = self.config.head_width() / 2;
        let angles = self.angles(positions);
        let table = |of: fn(f32) -> f32| {
            Tensor::from_vec(angles.iter().map(|angle| of(*angle)).collect::<Vec<_>>(), (positions.len(), half), device)
        };
        let cos = table(f32::cos)?;
        let sin = table(f32::sin)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden, &mask, (&cos, &sin))?;
        }
        self.norm.forward(&hidden)
    }

    /// Half a head's angles for each token: the first frequencies turn with time, the next with the row, the last with the column.
    fn angles(&self, positions: &[Position]) -> Vec<f32> {
        let half = self.config.head_width() / 2;
        let axis_of = self.config.mrope_section.iter().enumerate().flat_map(|(axis, count)| std::iter::repeat_n(axis, *count));
        let turns = axis_of.enumerate().map(|(index, axis)| {
            let frequency = 1.0 / (self.config.rope_theta as f32).powf(index as f32 / half as f32);
            (axis, frequency)
        });
        let turns: Vec<(usize, f32)> = turns.collect();
        let mut angles = Vec::with_capacity(positions.len() * turns.len());
        for position in positions {
            angles.extend(turns.iter().map(|(axis, frequency)| position[*axis] as f32 * frequency));
        }
        angles
    }
}

struct Layer {
    input_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    after_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    heads: usize,
    key_heads: usize,
}

impl Layer {
    fn new(config: &LanguageConfig, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let inner = config.intermediate_size;
        let keys = config.num_key_value_heads * config.head_width();
        let attention = vb.pp("self_attn");
        let mlp = vb.pp("mlp");
        let norm = |name| rms_norm(hidden, config.rms_norm_eps, vb.pp(name));
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            query: linear_b(hidden, hidden, true, attention.pp("q_proj"))?,
            key: linear_b(hidden, keys, true, attention.pp("k_proj"))?,
            value: linear_b(hidden, keys, true, attention.pp("v_proj"))?,
            out: linear_b(hidden, hidden, false, attention.pp("o_proj"))?,
            after_norm: norm("post_attention_layernorm")?,
            gate: linear_b(hidden, inner, false, mlp.pp("gate_proj"))?,
            up: linear_b(hidden, inner, false, mlp.pp("up_proj"))?,
            down: linear_b(inner, hidden, false, mlp.pp("down_proj"))?,
            heads: config.num_attention_heads,
            key_heads: config.num_key_value_heads,
        })
    }

    fn forward(&self, hidden: &Tensor, mask: &Tensor, angles: (&Tensor, &Tensor)) -> Result<Tensor> {
        let hidden = (hidden + self.attend(&self.input_norm.forward(hidden)?, mask, angles)?)?;
        let inner = self.after_norm.forward(&hidden)?;
        let gated = (silu(&self.gate.forward(&inner)?)? * self.up.forward(&inner)?)?;
        hidden + self.down.forward(&gated)?
    }

    /// Heads of one key go together: (key heads, heads of each · tokens, width).
    fn attend(&self, hidden: &Tensor, mask: &Tensor, (cos, sin): (&Tensor, &Tensor)) -> Result<Tensor> {
        let (_, tokens, channels) = hidden.dims3()?;
        let width = channels / self.heads;
        let shared = self.heads / self.key_heads;
        let by_head = |tensor: Tensor, heads: usize| tensor.reshape((1, tokens, heads, width))?.transpose(1, 2)?.contiguous();
        let turned = |tensor: Tensor, heads: usize| {
            let dtype = tensor.dtype();
            rope(&by_head(tensor, heads)?.to_dtype(DType::F32)?, cos, sin)?.to_dtype(dtype)
        };
        let query = (turned(self.query.forward(hidden)?, self.heads)? * (width as f64).sqrt().recip())?;
        let query = query.reshape((self.key_heads, shared * tokens, width))?;
        let key = turned(self.key.forward(hidden)?, self.key_heads)?.squeeze(0)?;
        let value = by_head(self.value.forward(hidden)?, self.key_heads)?.squeeze(0)?;
        let scores = query.matmul(&key.transpose(1, 2)?)?.to_dtype(DType::F32)?;
        let scores = scores.reshape((self.key_heads, shared, tokens, tokens))?.broadcast_add(mask)?;
        let weights = softmax_last_dim(&scores)?.to_dtype(hidden.dtype())?;
        let attended = weights.reshape((self.key_heads, shared * tokens, tokens))?.matmul(&value)?;
        let attended = attended.reshape((self.heads, tokens, width))?.transpose(0, 1)?.reshape((1, tokens, channels))?;
        self.out.forward(&attended)
    }
}
