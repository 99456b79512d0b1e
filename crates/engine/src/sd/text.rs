//! From prompts to the states that the UNet attends to.

use candle_core::{DType, Tensor};

use super::StableDiffusion;
use super::chunks::{Chunk, automatic_chunks, lpw_chunks};
use super::foreign_syntax::refuse_foreign_syntax;
use super::inversion::Inversions;
use super::settings::PromptSyntax;
use super::tokens::PromptTokenizer;
use super::weighting::Emphasis;
use crate::{EmbeddingFile, EngineError};

impl StableDiffusion {
    /// The words of a request and their vectors, those of the LoRAs in use among them.
    ///
    /// # Errors
    /// [`EngineError::Embedding`] says which file is at fault and why.
    pub fn read_embeddings(&self, files: &[EmbeddingFile]) -> Result<Inversions, EngineError> {
        Inversions::read(files, self.adapters.learned_words(), self.checkpoint.text_encoder.hidden_size, &self.device)
    }

    /// Encodes the prompt, in front of it the negative one where there is one.
    ///
    /// With [`PromptSyntax::Plain`], what does not fit into the model's 77 tokens is dropped, with a warning in the log. With
    /// [`PromptSyntax::Weighted`] and [`PromptSyntax::Lpw`] it goes on in further chunks of as many tokens, each with a start and an end of
    /// its own.
    ///
    /// Returns (1 or 2, chunks · tokens, hidden), f32, in the order `[negative, positive]`; both have as many chunks.
    ///
    /// # Errors
    /// When the tokenizer fails on the text, there is no memory, or the text has syntax of another program that is not built.
    pub fn encode_prompt(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
        inversions: &Inversions,
    ) -> Result<Tensor, EngineError> {
        self.encode_prompt_skipping(prompt, negative_prompt, inversions, 0)
    }

    /// The same without the last layers of the text encoder. As in diffusers' pipelines a plain negative prompt goes through all of them all the
    /// same; a weighted one goes through as many as the prompt, as in AUTOMATIC1111 and `lpw_stable_diffusion`.
    ///
    /// # Errors
    /// As [`Self::encode_prompt`]; and [`EngineError::Request`] when there are fewer layers.
    pub fn encode_prompt_skipping(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
        inversions: &Inversions,
        clip_skip: u32,
    ) -> Result<Tensor, EngineError> {
        let skipped = clip_skip as usize;
        let layers = self.checkpoint.text_encoder.num_hidden_layers;
        if skipped > layers {
            let problem = format!("must be at most {layers}, the layers of this model's text encoder, got {skipped}");
            return Err(EngineError::Request { field: "clip_skip", problem });
        }
        let vocabulary = self.checkpoint.text_encoder.vocab_size as u32;
        let has_words = !inversions.learned_words.is_empty();
        let learned = has_words.then(|| self.tokenizer.learn(inversions, vocabulary)).transpose()?;
        let tokenizer = learned.as_ref().unwrap_or(&self.tokenizer);
        match self.prompts {
            PromptSyntax::Plain => {
                self.encode_plain(tokenizer, negative_prompt.into_iter().chain([prompt]), inversions, skipped)
            }
            PromptSyntax::Weighted => self.encode_automatic(tokenizer, prompt, negative_prompt, inversions, skipped),
            PromptSyntax::Lpw => self.encode_lpw(tokenizer, prompt, negative_prompt, inversions, skipped),
        }
    }

    fn encode_plain<'a>(
        &self,
        tokenizer: &PromptTokenizer,
        texts: impl Iterator<Item = &'a str>,
        inversions: &Inversions,
        skipped: usize,
    ) -> Result<Tensor, EngineError> {
        let mut ids = Vec::new();
        for text in texts {
            let tokens = tokenizer.tokens(text)?;
            if tokens.dropped > 0 {
                tracing::warn!(dropped_tokens = tokens.dropped, "the prompt is too long, its end is not generated");
            }
            ids.push(tokens.ids);
        }
        let (negative, prompt) = ids.split_at(ids.len().saturating_sub(1));
        if skipped == 0 || negative.is_empty() {
            return self.states(&ids, inversions, skipped);
        }
        Ok(Tensor::cat(&[self.states(negative, inversions, 0)?, self.states(prompt, inversions, skipped)?], 0)?)
    }

    /// AUTOMATIC1111's way: the mean of every chunk stays what it was (`EmphasisOriginal` in `modules/sd_emphasis.py`).
    ///
    /// The shorter of the two texts gets empty chunks, as with its option `pad_cond_uncond`, for both are one batch.
    fn encode_automatic(
        &self,
        tokenizer: &PromptTokenizer,
        prompt: &str,
        negative_prompt: Option<&str>,
        inversions: &Inversions,
        skipped: usize,
    ) -> Result<Tensor, EngineError> {
        let texts = each_text(prompt, negative_prompt, |text| {
            automatic_chunks(&tokenizer.runs(text, Emphasis::Automatic)?, tokenizer.room(), tokenizer.comma())
        })?;
        let texts = of_equal_length(texts);
        let chunks: Vec<&Chunk> = texts.iter().flatten().collect();
        let ids: Vec<Vec<u32>> = chunks.iter().map(|chunk| tokenizer.padded(chunk)).collect();
        let states = self.states(&ids, inversions, skipped)?;
        let weighted = chunks
            .iter()
            .enumerate()
            .map(|(row, chunk)| emphasized(&states.narrow(0, row, 1)?, &tokenizer.place_weights(chunk)));
        rows_of(&Tensor::cat(&weighted.collect::<Result<Vec<_>, _>>()?, 0)?, texts.len())
    }

    /// The way of diffusers' community pipeline `lpw_stable_diffusion`: the mean of all chunks together stays what it was.
    fn encode_lpw(
        &self,
        tokenizer: &PromptTokenizer,
        prompt: &str,
        negative_prompt: Option<&str>,
        inversions: &Inversions,
        skipped: usize,
    ) -> Result<Tensor, EngineError> {
        let texts = each_text(prompt, negative_prompt, |text| {
            let (chunks, dropped) = lpw_chunks(&tokenizer.runs(text, Emphasis::Lpw)?, tokenizer.room());
            if dropped > 0 {
                tracing::warn!(dropped_tokens = dropped, "the prompt is too long, its end is not generated");
            }
            Ok(chunks)
        })?;
        let texts = of_equal_length(texts);
        let ids: Vec<Vec<u32>> = texts.iter().flatten().map(|chunk| tokenizer.padded_before_end(chunk)).collect();
        let states = rows_of(&self.states(&ids, inversions, skipped)?, texts.len())?;
        let weighted = texts.iter().enumerate().map(|(row, chunks)| {
            let weights: Vec<f64> = chunks.iter().flat_map(|chunk| tokenizer.place_weights(chunk)).collect();
            emphasized(&states.narrow(0, row, 1)?, &weights)
        });
        Ok(Tensor::cat(&weighted.collect::<Result<Vec<_>, _>>()?, 0)?)
    }

    /// `ids`: rows of the same length. Returns (rows, tokens, hidden), f32.
    fn states(&self, ids: &[Vec<u32>], inversions: &Inversions, skipped: usize) -> Result<Tensor, EngineError> {
        let length = ids.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(ids.concat(), (ids.len(), length), &self.device)?;
        Ok(self.adapters.current().text_encoder.forward(&ids, inversions.vectors.as_ref(), skipped)?)
    }
}

/// The chunks of the negative prompt, where there is one, and of the prompt.
fn each_text(
    prompt: &str,
    negative_prompt: Option<&str>,
    chunks: impl Fn(&str) -> Result<Vec<Chunk>, EngineError>,
) -> Result<Vec<Vec<Chunk>>, EngineError> {
    let mut texts = Vec::new();
    if let Some(negative) = negative_prompt {
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
