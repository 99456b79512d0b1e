//! The text model of Qwen2.5-VL or Qwen3, run once over a whole prompt: no cache, no logits.

use atelier_kernels::elementwise::Gate;
use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope;
use candle_nn::{Embedding, Module, RmsNorm, VarBuilder, embedding, rms_norm};

use super::positions::Position;
use crate::activations::gated;
use crate::attention::causal_mask;
use crate::layers::{Linear, linear_b};
use crate::qwen::text_config::LanguageConfig;

/// Which hidden state is taken from a text model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HiddenState {
    /// That of the last layer, normed.
    Last,
    /// That of the layer before, as it is: the last layer and the norm are not read.
    Penultimate,
    /// Those a quarter, a half and three quarters of the way, next to each other: layers 9, 18 and 27 of 36. What comes after is not read.
    Quarters,
}

impl HiddenState {
    /// The layers whose hidden states are taken, out of `all`; counted from 1, the last of them is the last that is read.
    fn layers(self, all: usize) -> Vec<usize> {
        match self {
            Self::Last => vec![all],
            Self::Penultimate => vec![all - 1],
            Self::Quarters => [1, 2, 3].map(|part| all * part / 4).to_vec(),
        }
    }
}

/// transformers' `Qwen2_5_VLTextModel` or `Qwen3Model`.
pub struct LanguageModel {
    config: LanguageConfig,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    /// Counted from 1.
    taken: Vec<usize>,
    norm: Option<RmsNorm>,
}

impl LanguageModel {
    /// `vb` stands at the model's own names (`embed_tokens.weight...`).
    pub(crate) fn new(config: &LanguageConfig, taken: HiddenState, vb: &VarBuilder) -> Result<Self> {
        let is_last = taken == HiddenState::Last;
        let taken = taken.layers(config.num_hidden_layers);
        let layers = taken.last().copied().unwrap_or_default();
        Ok(Self {
            embed_tokens: embedding(config.vocab_size, config.hidden_size, vb.pp("embed_tokens"))?,
            layers: (0..layers).map(|index| Layer::new(config, &vb.pp("layers").pp(index))).collect::<Result<_>>()?,
            taken,
            norm: is_last.then(|| rms_norm(config.hidden_size, config.rms_norm_eps, vb.pp("norm"))).transpose()?,
            config: config.clone(),
        })
    }

    /// `tokens`: below the vocabulary's size. Returns (tokens, hidden).
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let device = self.embed_tokens.embeddings().device();
        self.embed_tokens.forward(&Tensor::from_vec(tokens.to_vec(), tokens.len(), device)?)
    }

    /// `embedded`: (tokens, hidden), a position each. Returns (1, tokens, hidden): the hidden state that is taken, or several next to each other.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn forward(&self, embedded: &Tensor, positions: &[Position]) -> Result<Tensor> {
        let mask = causal_mask(0, positions.len(), positions.len(), embedded.device())?;
        self.forward_masked(embedded, positions, &mask)
    }

    /// [`Self::forward`] of a text and `padding` tokens behind it, which no token sees, they themselves neither (the masks of transformers).
    ///
    /// # Errors
    /// As of [`Self::forward`].
    pub(crate) fn forward_padded(&self, embedded: &Tensor, positions: &[Position], padding: usize) -> Result<Tensor> {
        let all = positions.len();
        let mask = causal_mask(0, all, all, embedded.device())?.narrow(1, 0, all - padding)?;
        let hidden = Tensor::full(f32::NEG_INFINITY, (all, padding), embedded.device())?;
        self.forward_masked(embedded, positions, &Tensor::cat(&[&mask, &hidden], 1)?)
    }

    /// `mask`: (tokens, tokens), f32, which is added to the scores.
    fn forward_masked(&self, embedded: &Tensor, positions: &[Position], mask: &Tensor) -> Result<Tensor> {
        let device = embedded.device();
        let mut hidden = embedded.unsqueeze(0)?;
        let half = self.config.head_width() / 2;
        let angles = self.angles(positions);
        let table = |of: fn(f32) -> f32| {
            Tensor::from_vec(angles.iter().map(|angle| of(*angle)).collect::<Vec<_>>(), (positions.len(), half), device)
        };
        let cos = table(f32::cos)?;
        let sin = table(f32::sin)?;
        let mut taken = Vec::with_capacity(self.taken.len());
        for (index, layer) in self.layers.iter().enumerate() {
            hidden = layer.forward(&hidden, mask, (&cos, &sin))?;
            if self.taken.contains(&(index + 1)) {
                taken.push(hidden.clone());
            }
        }
        match (&self.norm, taken.as_slice()) {
            (Some(norm), _) => norm.forward(&hidden),
            (None, [only]) => Ok(only.clone()),
            (None, several) => Tensor::cat(several, D::Minus1),
        }
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
    /// Of each head's queries and keys.
    head_norms: Option<[RmsNorm; 2]>,
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
        let queries = config.num_attention_heads * config.head_width();
        let keys = config.num_key_value_heads * config.head_width();
        let bias = config.attention_bias;
        let attention = vb.pp("self_attn");
        let mlp = vb.pp("mlp");
        let norm = |name| rms_norm(hidden, config.rms_norm_eps, vb.pp(name));
        let head_norm = |name| rms_norm(config.head_width(), config.rms_norm_eps, attention.pp(name));
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            query: linear_b(hidden, queries, bias, attention.pp("q_proj"))?,
            key: linear_b(hidden, keys, bias, attention.pp("k_proj"))?,
            value: linear_b(hidden, keys, bias, attention.pp("v_proj"))?,
            head_norms: if config.qk_norm { Some([head_norm("q_norm")?, head_norm("k_norm")?]) } else { None },
            out: linear_b(queries, hidden, false, attention.pp("o_proj"))?,
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
        hidden + self.down.forward(&gated(Gate::Silu, [&self.up, &self.gate], &inner)?)?
    }

    /// Heads of one key go together: (key heads, heads of each · tokens, width).
    fn attend(&self, hidden: &Tensor, mask: &Tensor, (cos, sin): (&Tensor, &Tensor)) -> Result<Tensor> {
        let tokens = hidden.dim(1)?;
        let query = self.query.forward(hidden)?;
        let channels = query.dim(2)?;
        let width = channels / self.heads;
        let shared = self.heads / self.key_heads;
        let by_head = |tensor: Tensor, heads: usize| tensor.reshape((1, tokens, heads, width))?.transpose(1, 2)?.contiguous();
        let turned = |tensor: Tensor, heads: usize, norm: Option<&RmsNorm>| {
            let dtype = tensor.dtype();
            let by_head = by_head(tensor, heads)?;
            let normed = norm.map_or(Ok(by_head.clone()), |norm| norm.forward(&by_head))?;
            rope(&normed.to_dtype(DType::F32)?, cos, sin)?.to_dtype(dtype)
        };
        let [query_norm, key_norm] = self.head_norms.as_ref().map_or([None, None], |[query, key]| [Some(query), Some(key)]);
        let query = (turned(query, self.heads, query_norm)? * (width as f64).sqrt().recip())?;
        let query = query.reshape((self.key_heads, shared * tokens, width))?;
        let key = turned(self.key.forward(hidden)?, self.key_heads, key_norm)?.squeeze(0)?;
        let value = by_head(self.value.forward(hidden)?, self.key_heads)?.squeeze(0)?;
        let scores = query.matmul(&key.transpose(1, 2)?)?.to_dtype(DType::F32)?;
        let scores = scores.reshape((self.key_heads, shared, tokens, tokens))?.broadcast_add(mask)?;
        let weights = softmax_last_dim(&scores)?.to_dtype(hidden.dtype())?;
        let attended = weights.reshape((self.key_heads, shared * tokens, tokens))?.matmul(&value)?;
        let attended = attended.reshape((self.heads, tokens, width))?.transpose(0, 1)?.reshape((1, tokens, channels))?;
        self.out.forward(&attended)
    }
}
