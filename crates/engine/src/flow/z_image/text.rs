//! The text encoder of Z-Image: a prompt to the hidden states of Qwen3's layer before the last.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::EngineError;
use crate::flow::qwen3;
use crate::qwen::text::language::{HiddenState, LanguageModel};
use crate::qwen::text::prompt::{CHAT, PromptTokenizer};
use crate::qwen::text::read;
use crate::qwen::text_config::LanguageConfig;
use crate::recent::Recent;

/// Prompts that are kept: 2.5 MiB each at full size and length.
const PROMPTS_KEPT: usize = 16;

/// A loaded text encoder. Prompts that came last are not encoded again.
pub struct TextEncoder {
    tokenizer: PromptTokenizer,
    language: LanguageModel,
    said: Recent<String, Tensor>,
}

impl TextEncoder {
    /// Reads the tokenizer under `directory`, and the text model there or out of `gguf`. Resident are 3.9 billion values at full size (7.8 GB in bf16).
    pub(super) fn read(
        directory: &Path,
        config: &LanguageConfig,
        gguf: Option<&Path>,
        kept: (DType, &Device),
    ) -> Result<(Self, u64), EngineError> {
        let tokenizer = PromptTokenizer::read(directory, CHAT)?;
        let (language, bytes) = qwen3::read(directory, config, HiddenState::Penultimate, gguf, kept)?;
        Ok((Self { tokenizer, language, said: Recent::new(PROMPTS_KEPT, |_, _| 1) }, bytes))
    }

    /// (1, tokens, hidden), in the weights' format. Without the padding of diffusers' pipeline, whose hidden states it drops.
    pub(super) fn encode(&mut self, prompt: &str) -> Result<Tensor, EngineError> {
        let Self { tokenizer, language, said } = self;
        said.of(prompt.to_owned(), || read(language, &tokenizer.runs(prompt, 0)?, &[], tokenizer.dropped()))
    }
}
