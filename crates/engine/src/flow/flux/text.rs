//! The text encoders of FLUX: a prompt to T5's hidden states and CLIP's pooled text.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use tokenizers::tokenizer::Tokenizer;

use super::config::Config;
use super::t5::{T5Encoder, gguf_name};
use crate::EngineError;
use crate::gguf_weights::build_from_gguf;
use crate::recent::Recent;
use crate::sd::clip;
use crate::sd::tokens::PromptTokenizer;
use crate::tokenizer_config::check_padding;
use crate::weights::{build_from, component_files};

/// What T5 is always given: a prompt, its end and padding.
const TOKENS: usize = 256;
const END: &str = "</s>";
const PAD: &str = "<pad>";
/// Prompts whose states are kept: 2 MiB each at full size.
const PROMPTS_KEPT: usize = 16;

/// What both encoders make of a prompt.
#[derive(Clone)]
pub struct TextStates {
    /// T5's: (1, 256, `d_model`).
    pub states: Tensor,
    /// CLIP's: (1, hidden).
    pub pooled: Tensor,
}

/// T5 and both tokenizers; CLIP is what adapters may change. Prompts that came last are not encoded again by T5.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    end: u32,
    pad: u32,
    model: T5Encoder,
    clip_tokenizer: PromptTokenizer,
    said: Recent<String, Tensor>,
}

impl TextEncoder {
    /// Reads the tokenizers under `directory`, and T5 there or out of `gguf`. Resident are 4.8 billion values at full size (9.5 GB in bf16).
    pub(super) fn read(
        directory: &Path,
        config: &Config,
        gguf: Option<&Path>,
        kept: (DType, &Device),
    ) -> Result<(Self, u64), EngineError> {
        check_padding(&directory.join("tokenizer_2"))?;
        let path = directory.join("tokenizer_2/tokenizer.json");
        let wrong = |problem: String| EngineError::Checkpoint { path: path.clone(), problem };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| wrong(error.to_string()))?;
        let plain = tokenizer.with_padding(None).with_truncation(None).map(|_| ());
        plain.map_err(|error| wrong(error.to_string()))?;
        // What a caller writes is text, whatever it looks like.
        tokenizer.set_encode_special_tokens(true);
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| wrong(format!("has no token {token}")));
        let end = id(END)?;
        let pad = id(PAD)?;
        let positions = config.clip.max_position_embeddings;
        let vectors = config.clip.vocab_size;
        let clip_tokenizer = PromptTokenizer::read(&directory.join("tokenizer"), &config.clip_pad, positions, vectors)?;
        let module = |vb: &VarBuilder| T5Encoder::new(&config.t5, vb);
        let (model, bytes) = match gguf {
            Some(file) => build_from_gguf(file, kept, gguf_name, module)?,
            None => build_from(
                &component_files(&directory.join("text_encoder_2"))?,
                kept,
                // Transformers wrote one table of words under two names.
                |name| Some(if name == "encoder.embed_tokens.weight" { "shared.weight" } else { name }.to_owned()),
                module,
            )?,
        };
        let said = Recent::new(PROMPTS_KEPT, |_: &String, _: &Tensor| 1);
        Ok((Self { tokenizer, end, pad, model, clip_tokenizer, said }, bytes))
    }

    /// The pooled text is that of the first 75 tokens, as diffusers cuts it.
    pub(super) fn encode(
        &mut self,
        clip: &clip::TextEncoder,
        prompt: &str,
        device: &Device,
    ) -> Result<TextStates, EngineError> {
        let tokens = self.tokens(prompt)?;
        let Self { model, said, clip_tokenizer, .. } = self;
        let states = said.of(prompt.to_owned(), || Ok::<_, EngineError>(model.forward(&tokens)?))?;
        let ids = clip_tokenizer.tokens(prompt)?.ids;
        let ids = Tensor::from_vec(ids.clone(), (1, ids.len()), device)?;
        let pooled = clip.forward(&ids, None, 0)?.pooled;
        let pooled = pooled.ok_or_else(|| candle_core::Error::msg("CLIP gave no pooled text"))?;
        Ok(TextStates { states, pooled })
    }

    fn tokens(&self, prompt: &str) -> Result<Vec<u32>, EngineError> {
        let wrong = |problem| EngineError::Request { field: "prompt", problem };
        let encoding = self.tokenizer.encode(prompt, false);
        let encoding = encoding.map_err(|error| wrong(format!("cannot be tokenized: {error}")))?;
        let mut tokens = encoding.get_ids().to_vec();
        if tokens.len() >= TOKENS {
            let problem = format!("must have at most {} tokens, got {}; shorten it", TOKENS - 1, tokens.len());
            return Err(wrong(problem));
        }
        tokens.push(self.end);
        tokens.resize(TOKENS, self.pad);
        Ok(tokens)
    }
}
