//! The CLIP text encoder: tokens of a prompt to the states the UNet attends to.

use candle_core::{DType, IndexOp, Result, Tensor};
use candle_nn::{Embedding, Module, VarBuilder, embedding};

use super::config::TextEncoderConfig;
use super::encoder_layer::{EncoderLayer, LayerConfig, LayerNames};
use crate::layers::{LayerNorm, Linear, layer_norm, linear_b};

/// What is taken from a text encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextOutput {
    /// The last hidden state, normed: Stable Diffusion 1 and 2.
    Last,
    /// The same, and the pooled text without a projection: FLUX's.
    Pooled,
    /// The one before, as it is: SDXL's first encoder.
    Penultimate,
    /// The same, and the pooled text of the last: SDXL's second, a `CLIPTextModelWithProjection`.
    PenultimateAndPooled,
}

/// Texts that were encoded, a row each, f32.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// (B, T, hidden).
    pub states: Tensor,
    /// (B, projection).
    pub pooled: Option<Tensor>,
}

/// transformers' `CLIPTextModel`, or `CLIPTextModelWithProjection`.
pub struct TextEncoder {
    token_embedding: Embedding,
    /// (positions, hidden).
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    output: TextOutput,
    projection: Option<Linear>,
    eos_token_id: u32,
}

impl TextEncoder {
    /// `vb` stands at the text encoder's own names (`text_model.embeddings...`).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: &TextEncoderConfig, output: TextOutput, vb: &VarBuilder) -> Result<Self> {
        let hidden = config.hidden_size;
        let projects = output == TextOutput::PenultimateAndPooled;
        let projection = projects.then(|| linear_b(hidden, config.projection_dim, false, vb.pp("text_projection")));
        let vb = vb.pp("text_model");
        let layer = LayerConfig {
            hidden_size: hidden,
            intermediate_size: config.intermediate_size,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            causal: true,
        };
        Ok(Self {
            token_embedding: embedding(config.vocab_size, hidden, vb.pp("embeddings.token_embedding"))?,
            positions: vb.get((config.max_position_embeddings, hidden), "embeddings.position_embedding.weight")?,
            layers: (0..config.num_hidden_layers)
                .map(|index| EncoderLayer::new(layer, &LayerNames::CLIP, &vb.pp("encoder.layers").pp(index)))
                .collect::<Result<_>>()?,
            final_layer_norm: layer_norm(hidden, config.layer_norm_eps, &vb.pp("final_layer_norm"))?,
            output,
            projection: projection.transpose()?,
            eos_token_id: config.eos_token_id,
        })
    }

    /// `tokens`: (B, T), u32, T up to the model's positions; `learned`: (L, hidden), f32, the vectors of the L tokens behind
    /// the vocabulary. The states are those before the last `skipped` layers of those that are taken without it.
    ///
    /// # Errors
    /// When there are more tokens than positions, or a token outside vocabulary and `learned`.
    pub fn forward(&self, tokens: &Tensor, learned: Option<&Tensor>, skipped: usize) -> Result<Encoded> {
        let (_, count) = tokens.dims2()?;
        let positions = self.positions.narrow(0, 0, count)?;
        let mut hidden = self.embed(tokens, learned)?.broadcast_add(&positions)?;
        let is_last = matches!(self.output, TextOutput::Last | TextOutput::Pooled);
        let left_out = skipped + usize::from(!is_last);
        let (used, rest) = self.layers.split_at(self.layers.len().saturating_sub(left_out));
        for layer in used {
            hidden = layer.forward(&hidden)?;
        }
        if is_last {
            let normed = self.final_layer_norm.forward(&hidden)?;
            let at_end = (self.output == TextOutput::Pooled).then(|| self.at_end(tokens, &normed)?.to_dtype(DType::F32));
            return Ok(Encoded { states: normed.to_dtype(DType::F32)?, pooled: at_end.transpose()? });
        }
        let states = hidden.to_dtype(DType::F32)?;
        let Some(projection) = &self.projection else { return Ok(Encoded { states, pooled: None }) };
        // The pooled text is always that of the last layer.
        for layer in rest {
            hidden = layer.forward(&hidden)?;
        }
        let at_end = self.at_end(tokens, &self.final_layer_norm.forward(&hidden)?)?;
        Ok(Encoded { states, pooled: Some(projection.forward(&at_end)?.to_dtype(DType::F32)?) })
    }

    /// `hidden`: (B, T, hidden). Returns (B, hidden): that of each text's end, as transformers finds it.
    fn at_end(&self, tokens: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        let ends = tokens.to_vec2::<u32>()?.into_iter().enumerate().map(|(row, ids)| {
            let end = match self.eos_token_id {
                // The first of the highest: words that were learned are higher than the end.
                TextEncoderConfig::WRONG_END => ids.iter().max().and_then(|highest| ids.iter().position(|id| id == highest)),
                end => ids.iter().position(|id| *id == end),
            };
            hidden.i((row, end.unwrap_or_default()))
        });
        Tensor::stack(&ends.collect::<Result<Vec<_>>>()?, 0)
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
