//! One text encoder with its tokenizer: a prompt and its negative prompt, read as they stand or with weights and in chunks.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};

use super::chunks::{Chunk, automatic_chunks, lpw_chunks};
use super::clip::{Encoded, TextEncoder};
use super::foreign_syntax::refuse_foreign_syntax;
use super::tokens::PromptTokenizer;
use super::weighting::{Emphasis, without_comments};
use crate::EngineError;

/// What is encoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'a> {
    pub(super) prompt: &'a str,
    pub(super) negative: Option<&'a str>,
}

/// What a text encoder makes of a prompt and, where there is one, of its negative prompt: a row each.
pub(super) struct Both {
    pub(super) negative: Option<Encoded>,
    pub(super) positive: Encoded,
}

impl Encoded {
    /// Rows from `start` on.
    fn rows(&self, start: usize, count: usize) -> Result<Self, EngineError> {
        let pooled = self.pooled.as_ref().map(|pooled| pooled.narrow(0, start, count)).transpose()?;
        Ok(Self { states: self.states.narrow(0, start, count)?, pooled })
    }

    /// The same shapes without a text.
    pub(super) fn zeros(&self) -> Result<Self, EngineError> {
        let pooled = self.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(Self { states: self.states.zeros_like()?, pooled })
    }

    /// The states of several encoders next to each other, and the pooled text of the one that has it.
    fn joined(each: &[&Self]) -> Result<Self, EngineError> {
        let states: Vec<&Tensor> = each.iter().map(|encoded| &encoded.states).collect();
        let lengths = states.iter().map(|states| states.dim(1)).collect::<Result<Vec<_>, _>>()?;
        if lengths.windows(2).any(|pair| pair[0] != pair[1]) {
            let problem = "a word has another number of vectors for one text encoder than for the other, so that the prompt ends in another chunk";
            return Err(EngineError::Request { field: "embeddings", problem: problem.into() });
        }
        Ok(Self { states: Tensor::cat(&states, 2)?, pooled: each.iter().find_map(|encoded| encoded.pooled.clone()) })
    }
}

impl Both {
    pub(super) fn joined(each: &[Self]) -> Result<Self, EngineError> {
        let positive: Vec<&Encoded> = each.iter().map(|both| &both.positive).collect();
        let negative: Vec<&Encoded> = each.iter().filter_map(|both| both.negative.as_ref()).collect();
        let negative = if negative.is_empty() { None } else { Some(Encoded::joined(&negative)?) };
        Ok(Self { negative, positive: Encoded::joined(&positive)? })
    }
}

pub(super) struct PromptEncoder<'a> {
    pub(super) tokenizer: Cow<'a, PromptTokenizer>,
    pub(super) model: &'a TextEncoder,
    /// (vectors, hidden), f32: those of learned words.
    pub(super) learned: Option<&'a Tensor>,
    pub(super) device: &'a Device,
}

impl PromptEncoder<'_> {
    /// Texts as they stand.
    pub(super) fn plain(&self, texts: Texts<'_>, skipped: usize) -> Result<Both, EngineError> {
        let mut ids = Vec::new();
        for text in texts.negative.into_iter().chain([texts.prompt]) {
            let tokens = self.tokenizer.tokens(text)?;
            if tokens.dropped > 0 {
                tracing::warn!(dropped_tokens = tokens.dropped, "the prompt is too long, its end is not generated");
            }
            ids.push(tokens.ids);
        }
        let (negative, prompt) = ids.split_at(ids.len().saturating_sub(1));
        if negative.is_empty() {
            return Ok(Both { negative: None, positive: self.encoded(prompt, skipped)? });
        }
        if skipped == 0 {
            let both = self.encoded(&ids, 0)?;
            return Ok(Both { negative: Some(both.rows(0, 1)?), positive: both.rows(1, 1)? });
        }
        Ok(Both { negative: Some(self.encoded(negative, 0)?), positive: self.encoded(prompt, skipped)? })
    }

    /// AUTOMATIC1111's way: the mean of every chunk stays what it was (`EmphasisOriginal` in `modules/sd_emphasis.py`), and the pooled text
    /// is the first chunk's (`modules/sd_hijack_clip.py`).
    ///
    /// Neither text is made as long as the other one: see [`Conditioning`](super::conditioning::Conditioning).
    pub(super) fn automatic(&self, texts: Texts<'_>, skipped: usize) -> Result<Both, EngineError> {
        let tokenizer = &self.tokenizer;
        let prompt = without_comments(texts.prompt);
        let negative = texts.negative.map(without_comments);
        let texts = each_text(Texts { prompt: &prompt, negative: negative.as_deref() }, |text| {
            automatic_chunks(&tokenizer.runs(text, Emphasis::Automatic)?, tokenizer.room(), tokenizer.comma())
        })?;
        let chunks: Vec<&Chunk> = texts.iter().flatten().collect();
        let ids: Vec<Vec<u32>> = chunks.iter().map(|chunk| tokenizer.padded(chunk)).collect();
        let encoded = self.encoded(&ids, skipped)?;
        let weighted = chunks.iter().enumerate().map(|(row, chunk)| {
            let Encoded { states, pooled } = encoded.rows(row, 1)?;
            Ok(Encoded { states: emphasized(&states, &tokenizer.place_weights(chunk))?, pooled })
        });
        let weighted = weighted.collect::<Result<Vec<_>, EngineError>>()?;
        let (negative, positive) = weighted.split_at(weighted.len() - texts.last().map_or(0, Vec::len));
        let negative = (!negative.is_empty()).then(|| in_a_row(negative)).transpose()?;
        Ok(Both { negative, positive: in_a_row(positive)? })
    }

    /// The way of diffusers' community pipeline `lpw_stable_diffusion`: the mean of all chunks together stays what it was.
    pub(super) fn lpw(&self, texts: Texts<'_>, skipped: usize) -> Result<Both, EngineError> {
        let tokenizer = &self.tokenizer;
        let texts = each_text(texts, |text| {
            let (chunks, dropped) = lpw_chunks(&tokenizer.runs(text, Emphasis::Lpw)?, tokenizer.room());
            if dropped > 0 {
                tracing::warn!(dropped_tokens = dropped, "the prompt is too long, its end is not generated");
            }
            Ok(chunks)
        })?;
        let texts = of_equal_length(texts);
        let ids: Vec<Vec<u32>> = texts.iter().flatten().map(|chunk| tokenizer.padded_before_end(chunk)).collect();
        let states = rows_of(&self.encoded(&ids, skipped)?.states, texts.len())?;
        let weighted = texts.iter().enumerate().map(|(row, chunks)| {
            let weights: Vec<f64> = chunks.iter().flat_map(|chunk| tokenizer.place_weights(chunk)).collect();
            Ok(Encoded { states: emphasized(&states.narrow(0, row, 1)?, &weights)?, pooled: None })
        });
        let mut weighted = weighted.collect::<Result<Vec<_>, EngineError>>()?.into_iter().rev();
        let positive = weighted.next().ok_or(EngineError::Gone)?;
        Ok(Both { negative: weighted.next(), positive })
    }

    /// `ids`: rows of the same length.
    pub(super) fn encoded(&self, ids: &[Vec<u32>], skipped: usize) -> Result<Encoded, EngineError> {
        let length = ids.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(ids.concat(), (ids.len(), length), self.device)?;
        Ok(self.model.forward(&ids, self.learned, skipped)?)
    }
}

/// Chunks of one text as a text of several times the length.
pub(super) fn in_a_row(chunks: &[Encoded]) -> Result<Encoded, EngineError> {
    let states: Vec<&Tensor> = chunks.iter().map(|chunk| &chunk.states).collect();
    Ok(Encoded { states: Tensor::cat(&states, 1)?, pooled: chunks.first().and_then(|chunk| chunk.pooled.clone()) })
}

/// What `chunks` reads in the negative prompt, where there is one, and in the prompt.
pub(super) fn each_text<T>(
    Texts { prompt, negative }: Texts<'_>,
    chunks: impl Fn(&str) -> Result<T, EngineError>,
) -> Result<Vec<T>, EngineError> {
    let mut texts = Vec::new();
    if let Some(negative) = negative {
        let read = refuse_foreign_syntax(negative, true).and_then(|()| chunks(negative));
        texts.push(read.map_err(EngineError::of_negative_prompt)?);
    }
    refuse_foreign_syntax(prompt, false)?;
    texts.push(chunks(prompt)?);
    Ok(texts)
}

/// Empty chunks behind the shorter text.
fn of_equal_length(mut texts: Vec<Vec<Chunk>>) -> Vec<Vec<Chunk>> {
    let count = texts.iter().map(Vec::len).max().unwrap_or_default();
    for chunks in &mut texts {
        chunks.resize(count, Chunk::default());
    }
    texts
}

/// (rows · chunks, tokens, hidden) to (rows, chunks · tokens, hidden).
fn rows_of(states: &Tensor, rows: usize) -> Result<Tensor, EngineError> {
    let (all, length, hidden) = states.dims3()?;
    Ok(states.reshape((rows, all / rows * length, hidden))?)
}

/// `states`: (1, tokens, hidden), f32, times a weight for each token; their mean stays what it was. Without weights they are left alone.
fn emphasized(states: &Tensor, weights: &[f64]) -> Result<Tensor, EngineError> {
    if weights.iter().all(|weight| weight.to_bits() == 1.0_f64.to_bits()) {
        return Ok(states.clone());
    }
    let mean = |states: &Tensor| states.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>();
    let weights: Vec<f32> = weights.iter().map(|weight| *weight as f32).collect();
    let weights = Tensor::from_vec(weights.clone(), (1, weights.len(), 1), states.device())?;
    let weighted = states.broadcast_mul(&weights)?;
    let restored = mean(states)? / mean(&weighted)?;
    if restored.is_finite() {
        return Ok((weighted * restored)?);
    }
    let problem = "the weights in it cancel each other out; write others".into();
    Err(EngineError::Request { field: "prompt", problem })
}
