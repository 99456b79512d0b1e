//! The CLIP text encoder: tokens of a prompt to the states the UNet attends to.

use candle_core::{DType, Result, Tensor};
use candle_nn::{Embedding, Module, VarBuilder, embedding};

use super::config::{Activation, TextEncoderConfig};
use crate::attention::attend_causally;
use crate::layers::{LayerNorm, Linear, layer_norm, linear, quick_gelu};

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
        Ok(Self {
            token_embedding: embedding(config.vocab_size, hidden, vb.pp("embeddings.token_embedding"))?,
            positions: vb.get((config.max_position_embeddings, hidden), "embeddings.position_embedding.weight")?,
            layers: (0..config.num_hidden_layers)
                .map(|index| EncoderLayer::new(config, &vb.pp("encoder.layers").pp(index)))
                .collect::<Result<_>>()?,
            final_layer_norm: layer_norm(hidden, config.layer_norm_eps, &vb.pp("final_layer_norm"))?,
        })
    }

    /// `tokens`: (B, T), u32, T up to the model's positions; `learned`: (L, hidden), f32, the vectors of the L tokens behind
    /// the vocabulary. Returns (B, T, hidden), f32: the hidden state before the last `skipped` layers, normed.
    ///
    /// # Errors
    /// When there are more tokens than positions, or a token outside vocabulary and `learned`.
    pub fn forward(&self, tokens: &Tensor, learned: Option<&Tensor>, skipped: usize) -> Result<Tensor> {
        let (_, count) = tokens.dims2()?;
        let positions = self.positions.narrow(0, 0, count)?;
        let mut hidden = self.embed(tokens, learned)?.broadcast_add(&positions)?;
        for layer in self.layers.iter().take(self.layers.len().saturating_sub(skipped)) {
            hidden = layer.forward(&hidden)?;
        }
        self.final_layer_norm.forward(&hidden)?.to_dtype(DType::F32)
    }

    /// The vocabulary's table is left as it is: with new rows it would be copied for every prompt.
    fn embed(&self, tokens: &Tensor, learned: Option<&Tensor>) -> Result<Tensor> {
        let Some(learned) = learned else { return self.token_embedding.forward(tokens) };
        let (rows, count) = tokens.dims2()?;
        let (vocabulary, hidden) = self.token_embedding.embeddings().dims2()?;
        let ids = tokens.flatten_all()?.to_vec1::<u32>()?;
        let own = |id: &u32| id.checked_sub(vocabulary as u32);
        let select =
            |ids: Vec<u32>, table: &Tensor| table.index_select(&Tensor::from_vec(ids.clone(), ids.len(), tokens.device())?, 0);
        let from_table =
            select(ids.iter().map(|id| if own(id).is_some() { 0 } else { *id }).collect(), self.token_embedding.embeddings())?;
        let from_learned = select(ids.iter().map(|id| own(id).unwrap_or(0)).collect(), &learned.to_dtype(from_table.dtype())?)?;
        let is_learned = ids.iter().map(|id| u8::from(own(id).is_some())).collect();
        let is_learned = Tensor::from_vec(is_learned, (ids.len(), 1), tokens.device())?.broadcast_as((ids.len(), hidden))?;
        is_learned.where_cond(&from_learned, &from_table)?.reshape((rows, count, hidden))
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
            layer_norm1: layer_norm(hidden, config.layer_norm_eps, &vb.pp("layer_norm1"))?,
            q_proj: linear(hidden, hidden, attention.pp("q_proj"))?,
            k_proj: linear(hidden, hidden, attention.pp("k_proj"))?,
            v_proj: linear(hidden, hidden, attention.pp("v_proj"))?,
            out_proj: linear(hidden, hidden, attention.pp("out_proj"))?,
            layer_norm2: layer_norm(hidden, config.layer_norm_eps, &vb.pp("layer_norm2"))?,
            fc1: linear(hidden, config.intermediate_size, vb.pp("mlp.fc1"))?,
            fc2: linear(config.intermediate_size, hidden, vb.pp("mlp.fc2"))?,
            activation: config.hidden_act,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        let attended = self.attend(&self.layer_norm1.forward(hidden)?)?;
        let hidden = self.out_proj.add_to(hidden, &attended)?;
        let inner = self.fc1.forward(&self.layer_norm2.forward(&hidden)?)?;
        let inner = match self.activation {
            Activation::QuickGelu => quick_gelu(&inner)?,
            Activation::Gelu => inner.gelu_erf()?,
            Activation::GeluNew => inner.gelu()?,
        };
        self.fc2.add_to(&hidden, &inner)
    }

    fn attend(&self, hidden: &Tensor) -> Result<Tensor> {
        let query = self.q_proj.forward(hidden)?;
        let key = self.k_proj.forward(hidden)?;
        let value = self.v_proj.forward(hidden)?;
        attend_causally(&query, &key, &value, self.heads)
    }
}
