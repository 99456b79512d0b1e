//! What a FLUX.2 klein checkpoint says about its transformer and its text encoder.

use std::path::Path;

use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::qwen::checkpoint::qwen3_language;
use crate::qwen::text_config::LanguageConfig;

const TRANSFORMER: Fixed = &[
    ("_class_name", &["\"Flux2Transformer2DModel\""]),
    ("guidance_embeds", &["false"]),
    ("patch_size", &["1"]),
    ("timestep_guidance_channels", &["256"]),
];

/// `transformer/config.json` of diffusers' `Flux2Transformer2DModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct TransformerConfig {
    /// Values of a token: latent channels times 2x2.
    pub in_channels: usize,
    /// Those that are predicted; none: as many.
    #[serde(default)]
    pub out_channels: Option<usize>,
    /// Blocks in which text and image have layers of their own.
    pub num_layers: usize,
    /// Blocks that both go through as one sequence.
    pub num_single_layers: usize,
    pub attention_head_dim: usize,
    pub num_attention_heads: usize,
    /// Width of the text: three hidden states of the encoder.
    pub joint_attention_dim: usize,
    /// Hidden width of the feed-forward layers, in widths.
    #[serde(default = "three")]
    pub mlp_ratio: f64,
    /// Widths of a head's values that turn with the image, the row, the column and the place in the text.
    #[serde(default = "axes")]
    pub axes_dims_rope: [usize; 4],
    /// Base of the rotary frequencies.
    #[serde(default = "two_thousand")]
    pub rope_theta: f64,
    /// Of every norm.
    #[serde(default = "epsilon")]
    pub eps: f64,
}

impl TransformerConfig {
    /// Width of the hidden states.
    pub(super) fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Hidden width of the feed-forward layers, as diffusers computes it.
    pub(super) fn inner(&self) -> usize {
        (self.width() as f64 * self.mlp_ratio) as usize
    }

    fn check(&self, language: &LanguageConfig) -> Result<(), &'static str> {
        let axes = self.axes_dims_rope;
        let wrong = [
            (self.width() == 0 || self.in_channels == 0 || self.inner() == 0, "its sizes must not be 0"),
            (!self.in_channels.is_multiple_of(4), "in_channels must be 4 times the VAE's latent_channels"),
            (self.out_channels.is_some_and(|out| out != self.in_channels), "out_channels must be in_channels, or null"),
            (axes.iter().sum::<usize>() != self.attention_head_dim, "axes_dims_rope must add up to attention_head_dim"),
            (axes.iter().any(|width| width % 2 == 1), "axes_dims_rope must be even"),
            (
                self.joint_attention_dim != 3 * language.hidden_size,
                "joint_attention_dim must be 3 times the text encoder's hidden_size",
            ),
        ];
        wrong.iter().find(|(is_wrong, _)| *is_wrong).map_or(Ok(()), |(_, problem)| Err(*problem))
    }
}

/// All that is read of a checkpoint but for autoencoder and schedule.
#[derive(Debug, Clone)]
pub struct Config {
    pub transformer: TransformerConfig,
    pub language: LanguageConfig,
}

#[derive(Deserialize)]
struct ModelIndex {
    #[serde(default)]
    is_distilled: bool,
}

impl Config {
    /// Reads `model_index.json`, `transformer/config.json` and `text_encoder/config.json` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub(super) fn read(directory: &Path) -> Result<Self, EngineError> {
        let wrong = |path, problem: &str| EngineError::Checkpoint { path, problem: problem.to_owned() };
        let path = directory.join("model_index.json");
        if !read::<ModelIndex>(&path, &[])?.is_distilled {
            let problem = "is_distilled must be true: the base models of FLUX.2 klein need guidance and fifty steps, which family flux2 has not; \
                           take the distilled model";
            return Err(wrong(path, problem));
        }
        let path = directory.join("transformer/config.json");
        let transformer: TransformerConfig = read(&path, TRANSFORMER)?;
        let language = qwen3_language(&directory.join("text_encoder/config.json"))?;
        transformer.check(&language).map_err(|problem| wrong(path, problem))?;
        if !language.num_hidden_layers.is_multiple_of(4) {
            let problem = "num_hidden_layers must be a multiple of 4: the hidden states of three quarters of them are read";
            return Err(wrong(directory.join("text_encoder/config.json"), problem));
        }
        Ok(Self { transformer, language })
    }
}

fn axes() -> [usize; 4] {
    [32; 4]
}

fn three() -> f64 {
    3.0
}

fn two_thousand() -> f64 {
    2000.0
}

fn epsilon() -> f64 {
    1e-6
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FLUX.2-klein-4B's own file, without those of its keys that have the same value in `Flux2Transformer2DModel`.
    #[test]
    fn what_a_published_configuration_leaves_out_is_as_in_diffusers() {
        let published = r#"{"_class_name": "Flux2Transformer2DModel", "_diffusers_version": "0.37.0.dev0", "attention_head_dim": 128,
            "guidance_embeds": false, "in_channels": 128, "joint_attention_dim": 7680, "num_attention_heads": 24, "num_layers": 5,
            "num_single_layers": 20, "patch_size": 1, "timestep_guidance_channels": 256}"#;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), published).expect("writes");
        let config: TransformerConfig = read(file.path(), TRANSFORMER).expect("reads");
        assert_eq!((config.out_channels, config.axes_dims_rope, config.inner()), (None, [32; 4], 3 * 3072));
        assert_eq!((config.mlp_ratio, config.rope_theta, config.eps), (3.0, 2000.0, 1e-6));
    }
}
