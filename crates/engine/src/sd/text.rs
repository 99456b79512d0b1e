//! From prompts to the states that the UNet attends to.

use candle_core::{DType, Tensor};

use super::StableDiffusion;
use super::inversion::Inversions;
use super::settings::PromptSyntax;
use super::tokens::{PromptTokenizer, WeightedTokens};
use crate::{EmbeddingFile, EngineError};

impl StableDiffusion {
    /// The words of a request and their vectors, those of the LoRAs in use among them.
    ///
    /// # Errors
    /// [`EngineError::Embedding`] says which file is at fault and why.
    pub fn read_embeddings(&self, files: &[EmbeddingFile]) -> Result<Inversions, EngineError> {
        Inversions::read(files, self.adapters.words(), self.checkpoint.text_encoder.hidden_size, &self.device)
    }

    /// Encodes the prompt, in front of it the negative one where there is one.
    ///
    /// With [`PromptSyntax::Plain`], what does not fit into the model's 77 tokens is dropped, with a warning in the log. With
    /// [`PromptSyntax::Weighted`] it goes on in further chunks of as many tokens, each with a start and an end of its own.
    ///
    /// Returns (1 or 2, chunks · tokens, hidden), f32, in the order `[negative, positive]`; both have as many chunks.
    ///
    /// # Errors
    /// When the tokenizer fails on the text, or there is no memory.
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
        let learn = || self.tokenizer.learn(inversions, vocabulary);
        let learned = (!inversions.words.is_empty()).then(learn).transpose()?;
        let tokenizer = learned.as_ref().unwrap_or(&self.tokenizer);
        let texts = negative_prompt.into_iter().chain([prompt]);
        match self.prompts {
            PromptSyntax::Plain => self.encode_plain(tokenizer, texts, inversions, skipped),
            PromptSyntax::Weighted => self.encode_weighted(tokenizer, texts, inversions, skipped),
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

    fn encode_weighted<'a>(
        &self,
        tokenizer: &PromptTokenizer,
        texts: impl Iterator<Item = &'a str>,
        inversions: &Inversions,
        skipped: usize,
    ) -> Result<Tensor, EngineError> {
        let texts = texts.map(|text| tokenizer.weighted(text)).collect::<Result<Vec<_>, _>>()?;
        let most = texts.iter().map(|text| text.ids.len()).max().unwrap_or_default();
        let chunks = most.div_ceil(tokenizer.room()).max(1);
        let ids: Vec<Vec<u32>> = texts.iter().flat_map(|text| tokenizer.chunks(&text.ids, chunks)).collect();
        let states = self.states(&ids, inversions, skipped)?;
        let (_, length, hidden) = states.dims3()?;
        let states = states.reshape((texts.len(), chunks * length, hidden))?;
        if texts.iter().all(WeightedTokens::is_plain) {
            return Ok(states);
        }
        let rows = texts
            .iter()
            .enumerate()
            .map(|(row, text)| emphasized(&states.narrow(0, row, 1)?, &tokenizer.spread(&text.weights, chunks)));
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>, _>>()?, 0)?)
    }

    /// `ids`: rows of the same length. Returns (rows, tokens, hidden), f32.
    fn states(&self, ids: &[Vec<u32>], inversions: &Inversions, skipped: usize) -> Result<Tensor, EngineError> {
        let length = ids.first().map_or(0, Vec::len);
        let ids = Tensor::from_vec(ids.concat(), (ids.len(), length), &self.device)?;
        Ok(self.adapters.current().text_encoder.forward(&ids, inversions.vectors.as_ref(), skipped)?)
    }
}

/// `states`: (1, tokens, hidden), f32; a weight a token. The mean of all states stays what it was: diffusers'
/// `lpw_stable_diffusion` and AUTOMATIC1111 restore it so.
fn emphasized(states: &Tensor, weights: &[f64]) -> Result<Tensor, EngineError> {
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
