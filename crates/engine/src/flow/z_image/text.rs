//! The text encoder of Z-Image: a prompt to the hidden states of Qwen3's layer before the last.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::EngineError;
use crate::qwen::text::language::{HiddenState, LanguageModel};
use crate::qwen::text::prompt::{CHAT, PromptTokenizer};
use crate::qwen::text::{our_name, read};
use crate::qwen::text_config::LanguageConfig;
use crate::recent::Recent;
use crate::weights::{build_from, component_files};

/// Prompts that are kept: 2.5 MiB each at full size and length.
const PROMPTS_KEPT: usize = 16;

/// A loaded text encoder. Prompts that came last are not encoded again.
pub struct TextEncoder {
    tokenizer: PromptTokenizer,
    language: LanguageModel,
    said: Recent<String, Tensor>,
}

impl TextEncoder {
    /// Reads tokenizer and text model under `directory`. Resident are 3.9 billion values at full size (7.8 GB in bf16).
    pub(super) fn read(directory: &Path, config: &LanguageConfig, kept: (DType, &Device)) -> Result<(Self, u64), EngineError> {
        let tokenizer = PromptTokenizer::read(directory, CHAT)?;
        let files = component_files(&directory.join("text_encoder"))?;
        let (language, bytes) =
            build_from(&files, kept, our_name, |vb| LanguageModel::new(config, HiddenState::Penultimate, &vb.pp("language")))?;
        Ok((Self { tokenizer, language, said: Recent::new(PROMPTS_KEPT, |_, _| 1) }, bytes))
    }

    /// (1, tokens, hidden), in the weights' format. Without the padding of diffusers' pipeline, whose hidden states it drops.
    pub(super) fn encode(&mut self, prompt: &str) -> Result<Tensor, EngineError> {
        let Self { tokenizer, language, said } = self;
        said.of(prompt.to_owned(), || read(language, &tokenizer.runs(prompt, 0)?, &[], tokenizer.dropped()))
    }
}
