//! Long and weighted prompts for SDXL as diffusers' community pipeline `lpw_stable_diffusion_xl` reads them (`get_weighted_text_embeddings_sdxl`).
//!
//! It differs from `lpw_stable_diffusion` in all but the brackets: any length, a last chunk that is not filled up, weights towards or
//! away from the state of a chunk's end, and the pooled text of the last chunk.

use candle_core::{IndexOp, Tensor};
use half::f16;

use super::chunks::Chunk;
use super::clip::Encoded;
use super::foreign_syntax::find_word;
use super::prompt_encoder::{Both, PromptEncoder, Texts, each_text, in_a_row};
use super::weighting::Emphasis;
use crate::EngineError;

impl PromptEncoder<'_> {
    /// The negative prompt goes through all layers, whatever the prompt leaves out.
    pub(super) fn lpw_xl(&self, texts: Texts<'_>, skipped: usize) -> Result<Both, EngineError> {
        let mut texts = each_text(texts, |text| {
            refuse_break(text)?;
            let mut all = Chunk::default();
            for run in self.tokenizer.runs(text, Emphasis::Lpw)? {
                run.tokens.iter().for_each(|token| all.extend(token, run.weight));
            }
            Ok(all)
        })?;
        // Ends behind the shorter text.
        let length = texts.iter().map(|text| text.ids.len()).max().unwrap_or_default();
        for text in &mut texts {
            text.ids.resize(length, self.tokenizer.end());
            text.weights.resize(length, 1.0);
        }
        let positive = texts.pop().unwrap_or_default();
        let negative = texts.pop().map(|text| self.weighted_groups(text, 0)).transpose()?;
        Ok(Both { negative, positive: self.weighted_groups(positive, skipped)? })
    }

    fn weighted_groups(&self, mut text: Chunk, skipped: usize) -> Result<Encoded, EngineError> {
        let mut groups = Vec::new();
        while groups.is_empty() || !text.ids.is_empty() {
            let rest = text.split_off(self.tokenizer.room().min(text.ids.len()));
            let Encoded { states, pooled } = self.encoded(&[self.tokenizer.unpadded(&text)], skipped)?;
            groups.push(Encoded { states: towards_end(&states, &text.weights)?, pooled });
            text = rest;
        }
        let pooled = groups.last().and_then(|group| group.pooled.clone());
        Ok(Encoded { pooled, ..in_a_row(&groups)? })
    }
}

/// `states`: (1, tokens, hidden), f32, of a start, a text with these weights, and an end.
fn towards_end(states: &Tensor, weights: &[f64]) -> Result<Tensor, EngineError> {
    // The pipeline keeps weights in f16.
    let weights = weights.iter().map(|weight| f16::from_f64(*weight).to_f32());
    let weights: Vec<f32> = [1.0].into_iter().chain(weights).chain([1.0]).collect();
    if weights.iter().all(|weight| weight.to_bits() == 1.0_f32.to_bits()) {
        return Ok(states.clone());
    }
    let count = weights.len();
    let end = states.i((.., count - 1..))?;
    let weights = Tensor::from_vec(weights, (1, count, 1), states.device())?;
    let weighted = states.broadcast_sub(&end)?.broadcast_mul(&weights)?.broadcast_add(&end)?;
    // Only places with a weight change, down to the last bit.
    let is_weighted = weights.ne(1.0)?.broadcast_as(states.shape())?;
    Ok(is_weighted.where_cond(&weighted, states)?)
}

/// The pipeline takes it for a word of weight -1, which nobody means.
fn refuse_break(text: &str) -> Result<(), EngineError> {
    if find_word(text, "BREAK").is_none() {
        return Ok(());
    }
    let problem =
        "BREAK ends no chunk by the rules of lpw_stable_diffusion_xl; leave it out, or set `prompt: weighted` in the manifest";
    Err(EngineError::Request { field: "prompt", problem: problem.into() })
}
