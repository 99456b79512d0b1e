//! The text encoder of FLUX.2 klein: a prompt to three hidden states of Qwen3 for each of 512 tokens.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::EngineError;
use crate::flow::qwen3;
use crate::qwen::text::language::{HiddenState, LanguageModel};
use crate::qwen::text::positions::{Run, positions};
use crate::qwen::text::prompt::{ANSWER, PromptTokenizer};
use crate::qwen::text_config::LanguageConfig;
use crate::recent::Recent;
use crate::tokenizer_config::{check_padding, pad_token};

/// What the model is always given: the template, a prompt in it, and padding, whose hidden states it reads as well.
const TOKENS: usize = 512;
/// Prompts that are kept: 7.5 MiB each at full size.
const PROMPTS_KEPT: usize = 16;

/// A loaded text encoder. Prompts that came last are not encoded again.
pub struct TextEncoder {
    tokenizer: PromptTokenizer,
    pad: u32,
    language: LanguageModel,
    said: Recent<String, Tensor>,
}

impl TextEncoder {
    /// Reads the tokenizer under `directory`, and the text model there or out of `gguf`. Resident are 3.1 billion values at full size (6.2 GB in bf16):
    /// the last quarter of the layers is not read.
    pub(super) fn read(
        directory: &Path,
        config: &LanguageConfig,
        gguf: Option<&Path>,
        kept: (DType, &Device),
    ) -> Result<(Self, u64), EngineError> {
        let tokenizer = PromptTokenizer::read(directory, ANSWER)?;
        let path = directory.join("tokenizer");
        check_padding(&path)?;
        let pad = pad_token(&path)?;
        let pad = tokenizer.id(&pad).ok_or_else(|| EngineError::Checkpoint { path, problem: format!("has no token {pad}") })?;
        let (language, bytes) = qwen3::read(directory, config, HiddenState::Quarters, gguf, kept)?;
        Ok((Self { tokenizer, pad, language, said: Recent::new(PROMPTS_KEPT, |_, _| 1) }, bytes))
    }

    /// (1, 512, 3·hidden), in the weights' format.
    pub(super) fn encode(&mut self, prompt: &str) -> Result<Tensor, EngineError> {
        let Self { tokenizer, pad, language, said } = self;
        said.of(prompt.to_owned(), || {
            let mut tokens = Vec::with_capacity(TOKENS);
            for run in tokenizer.runs(prompt, 0)? {
                if let Run::Text(run) = run {
                    tokens.extend(run);
                }
            }
            let padding = TOKENS.checked_sub(tokens.len()).ok_or_else(|| {
                let problem =
                    format!("must have at most {TOKENS} tokens, those of its template among them, got {}", tokens.len());
                EngineError::Request { field: "prompt", problem }
            })?;
            tokens.resize(TOKENS, *pad);
            let embedded = language.embed(&tokens)?;
            Ok(language.forward_padded(&embedded, &positions(&[Run::Text(tokens)], &[]), padding)?)
        })
    }
}
