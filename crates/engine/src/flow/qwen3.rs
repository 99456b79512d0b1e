//! Qwen3 as the text encoder of flow models: out of a checkpoint's directory, or of a GGUF file.

use std::path::Path;

use candle_core::{DType, Device};
use candle_nn::VarBuilder;

use crate::EngineError;
use crate::gguf_weights::build_from_gguf;
use crate::qwen::text::language::{HiddenState, LanguageModel};
use crate::qwen::text::our_name;
use crate::qwen::text_config::LanguageConfig;
use crate::weights::{build_from, component_files};

/// Reads the layers up to what is `taken` under `directory`, or out of `gguf`, and says how many bytes they are.
///
/// # Errors
/// [`EngineError::Checkpoint`] names the file and lists what is missing in it or not supported.
pub(super) fn read(
    directory: &Path,
    config: &LanguageConfig,
    taken: HiddenState,
    gguf: Option<&Path>,
    kept: (DType, &Device),
) -> Result<(LanguageModel, u64), EngineError> {
    let module = |vb: &VarBuilder| LanguageModel::new(config, taken, &vb.pp("language"));
    match gguf {
        Some(file) => build_from_gguf(file, kept, gguf_name, module),
        None => build_from(&component_files(&directory.join("text_encoder"))?, kept, our_name, module),
    }
}

/// Ours of llama.cpp's names of Qwen3's tensors (`gguf-py/gguf/tensor_mapping.py` of ggml-org/llama.cpp).
fn gguf_name(name: &str) -> Option<String> {
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
