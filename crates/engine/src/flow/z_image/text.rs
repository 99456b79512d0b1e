//! The text encoder of Z-Image: a prompt to the hidden states of Qwen3's layer before the last.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use crate::EngineError;
use crate::gguf_weights::build_from_gguf;
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
    /// Reads the tokenizer under `directory`, and the text model there or out of `gguf`. Resident are 3.9 billion values at full size (7.8 GB in bf16).
    pub(super) fn read(
        directory: &Path,
        config: &LanguageConfig,
        gguf: Option<&Path>,
        kept: (DType, &Device),
    ) -> Result<(Self, u64), EngineError> {
        let tokenizer = PromptTokenizer::read(directory, CHAT)?;
        let module = |vb: &VarBuilder| LanguageModel::new(config, HiddenState::Penultimate, &vb.pp("language"));
        let (language, bytes) = match gguf {
            Some(file) => build_from_gguf(file, kept, gguf_name, module)?,
            None => build_from(&component_files(&directory.join("text_encoder"))?, kept, our_name, module)?,
        };
        Ok((Self { tokenizer, language, said: Recent::new(PROMPTS_KEPT, |_, _| 1) }, bytes))
    }

    /// (1, tokens, hidden), in the weights' format. Without the padding of diffusers' pipeline, whose hidden states it drops.
    pub(super) fn encode(&mut self, prompt: &str) -> Result<Tensor, EngineError> {
        let Self { tokenizer, language, said } = self;
        said.of(prompt.to_owned(), || read(language, &tokenizer.runs(prompt, 0)?, &[], tokenizer.dropped()))
    }
}

/// Ours of llama.cpp's names of Qwen3's tensors (`gguf-py/gguf/tensor_mapping.py` of ggml-org/llama.cpp).
pub(in crate::flow) fn gguf_name(name: &str) -> Option<String> {
    let module = match name.strip_suffix(".weight")? {
        "token_embd" => "embed_tokens".to_owned(),
        "output_norm" => "norm".to_owned(),
        inside => {
            let (layer, part) = inside.strip_prefix("blk.")?.split_once('.')?;
            let part = match part {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                _ => return None,
            };
            format!("layers.{layer}.{part}")
        }
    };
    Some(format!("language.{module}.weight"))
}
