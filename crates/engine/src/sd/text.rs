//! From prompts to what the UNet gets of them.

use std::borrow::Cow;

use candle_core::Tensor;

use super::StableDiffusion;
use super::clip::Encoded;
use super::conditioning::{Conditioning, Text};
use super::inversion::Inversions;
use super::prompt_encoder::{Both, PromptEncoder, Texts};
use super::settings::PromptSyntax;
use super::sizes::Sizes;
use crate::{EmbeddingFile, EngineError};

/// How a text becomes what the UNet gets, besides its words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Last layers of the text encoders that are left out.
    pub clip_skip: u32,
    /// Seen by SDXL alone.
    pub sizes: Sizes,
}

impl StableDiffusion {
    /// The words of a request and their vectors, those of the LoRAs in use among them.
    ///
    /// # Errors
    /// [`EngineError::Embedding`] says which file is at fault and why.
    pub fn read_embeddings(&self, files: &[EmbeddingFile]) -> Result<Inversions, EngineError> {
        let widths: Vec<usize> = self.checkpoint.text_encoders.iter().map(|encoder| encoder.config.hidden_size).collect();
        Inversions::read(files, self.adapters.learned_words(), &widths, &self.device)
    }

    /// Encodes the prompt, in front of it the negative one where there is one.
    ///
    /// With [`PromptSyntax::Plain`], what does not fit into the model's 77 tokens is dropped, with a warning in the log. With
    /// [`PromptSyntax::Weighted`] and [`PromptSyntax::Lpw`] it goes on in further chunks of as many tokens, each with a start and an end of
    /// its own.
    ///
    /// With [`PromptSyntax::Weighted`] the two may have different numbers of chunks.
    ///
    /// # Errors
    /// When the tokenizer fails on the text, there is no memory, or the text has syntax of another program that is not built.
    pub fn encode_prompt(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
        inversions: &Inversions,
    ) -> Result<Conditioning, EngineError> {
        self.encode_prompt_with(prompt, negative_prompt, inversions, Encoding::default())
    }

    /// The same without the last layers of the text encoders, and for SDXL with other sizes than 0. As in diffusers' pipelines a plain negative
    /// prompt goes through all layers all the same; a weighted one goes through as many as the prompt, as in AUTOMATIC1111 and
    /// `lpw_stable_diffusion`.
    ///
    /// # Errors
    /// As [`Self::encode_prompt`]; and [`EngineError::Request`] when there are fewer layers.
    pub fn encode_prompt_with(
        &self,
        prompt: &str,
        negative_prompt: Option<&str>,
        inversions: &Inversions,
        encoding: Encoding,
    ) -> Result<Conditioning, EngineError> {
        let skipped = encoding.clip_skip as usize;
        let layers = self.checkpoint.max_clip_skip();
        if skipped > layers {
            let problem = format!("must be at most {layers}, the layers of this model's text encoder, got {skipped}");
            return Err(EngineError::Request { field: "clip_skip", problem });
        }
        // An empty negative prompt is none, as in diffusers and AUTOMATIC1111; lpw's pipeline reads it.
        let zeroed = self.checkpoint.zeroes_empty_negative && self.prompts != PromptSyntax::Lpw && negative_prompt == Some("");
        let texts = Texts { prompt, negative: negative_prompt.filter(|_| !zeroed) };
        let encoders = self.prompt_encoders(inversions)?;
        let each = encoders.iter().map(|encoder| match self.prompts {
            PromptSyntax::Plain => encoder.plain(texts, skipped),
            PromptSyntax::Weighted => encoder.automatic(texts, skipped),
            PromptSyntax::Lpw if self.checkpoint.is_xl() => encoder.lpw_xl(texts, skipped),
            PromptSyntax::Lpw => encoder.lpw(texts, skipped),
        });
        let joined = Both::joined(&each.collect::<Result<Vec<_>, _>>()?)?;
        let positive = self.text(&joined.positive, encoding.sizes)?;
        let negative = match &joined.negative {
            None if zeroed => Some(self.text(&joined.positive.zeros()?, encoding.sizes)?),
            negative => negative.as_ref().map(|negative| self.text(negative, encoding.sizes)).transpose()?,
        };
        Ok(Conditioning { negative, positive })
    }

    /// The text encoders with their tokenizers, which know the words of `inversions`.
    fn prompt_encoders<'a>(&'a self, inversions: &'a Inversions) -> Result<Vec<PromptEncoder<'a>>, EngineError> {
        let models = &self.adapters.current().text_encoders;
        let encoders = self.tokenizers.iter().zip(models).enumerate();
        let encoders = encoders.map(|(index, (tokenizer, model))| {
            let words = inversions.of(index);
            let learned = words.map(|words| tokenizer.learn(words)).transpose()?;
            let tokenizer = learned.map_or(Cow::Borrowed(tokenizer), Cow::Owned);
            Ok(PromptEncoder { tokenizer, model, learned: words.map(|words| &words.vectors), device: &self.device })
        });
        encoders.collect()
    }

    /// What the UNet gets of texts of one row.
    fn text(&self, encoded: &Encoded, sizes: Sizes) -> Result<Text, EngineError> {
        let states = encoded.states.clone();
        let Some(pooled) = &encoded.pooled else { return Ok(Text::of_states(states)) };
        let waves = sizes.waves(&self.checkpoint.unet, &self.device)?;
        Ok(Text { added: Some(Tensor::cat(&[pooled, &waves], 1)?), ..Text::of_states(states) })
    }
}
