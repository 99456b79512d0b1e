//! What a Z-Image checkpoint says about its transformer and its text encoder.

use std::path::Path;

use serde::Deserialize;

use crate::EngineError;
use crate::json_config::{Fixed, read};
use crate::qwen::checkpoint::qwen3_language;
use crate::qwen::text_config::LanguageConfig;

const TRANSFORMER: Fixed = &[
    ("_class_name", &["\"ZImageTransformer2DModel\""]),
    ("all_f_patch_size", &["1"]),
    ("all_patch_size", &["2"]),
    ("qk_norm", &["true"]),
    ("siglip_feat_dim", &["null"]),
];

/// `transformer/config.json` of diffusers' `ZImageTransformer2DModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct TransformerConfig {
    /// Latent channels, those that are predicted as well.
    pub in_channels: usize,
    /// Width of the hidden states.
    pub dim: usize,
    pub n_layers: usize,
    /// Layers that image and text go through before they meet, so many each.
    pub n_refiner_layers: usize,
    pub n_heads: usize,
    #[serde(default = "epsilon")]
    pub norm_eps: f64,
    /// Width of the text encoder's hidden states.
    pub cap_feat_dim: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "base")]
    pub rope_theta: f64,
    /// What a time of 0 to 1 is multiplied by.
    #[serde(default = "thousand")]
    pub t_scale: f64,
    /// Widths of a head's values that turn with the place in the sequence, the row and the column.
    #[serde(default = "axes")]
    pub axes_dims: [usize; 3],
    /// How many positions each of them has.
    #[serde(default = "positions")]
    pub axes_lens: [usize; 3],
}

impl TransformerConfig {
    /// Width of what the layers get of time (`ADALN_EMBED_DIM`).
    pub(super) fn time_width(&self) -> usize {
        self.dim.min(256)
    }

    /// Hidden width of the feed-forward layers, as diffusers computes it.
    pub(super) fn feed_forward_width(&self) -> usize {
        (self.dim as f64 / 3.0 * 8.0) as usize
    }

    /// Values of a token: 2x2 latents of all channels.
    pub(super) fn token_values(&self) -> usize {
        4 * self.in_channels
    }

    fn check(&self, language: &LanguageConfig) -> Result<(), &'static str> {
        let wrong = [
            (self.n_layers == 0 || self.in_channels == 0, "its sizes must not be 0"),
            (
                self.n_heads == 0 || self.dim != self.n_heads * self.axes_dims.iter().sum::<usize>(),
                "axes_dims must add up to dim over n_heads",
            ),
            (self.axes_dims.iter().any(|width| width % 2 == 1), "axes_dims must be even"),
            (self.cap_feat_dim != language.hidden_size, "cap_feat_dim must be the text encoder's hidden_size"),
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

impl Config {
    /// Reads `transformer/config.json` and `text_encoder/config.json` under `directory`.
    ///
    /// # Errors
    /// [`EngineError::Checkpoint`] with the file and what is missing in it or not supported, and what would be.
    pub(super) fn read(directory: &Path) -> Result<Self, EngineError> {
        let path = directory.join("transformer/config.json");
        let transformer: TransformerConfig = read(&path, TRANSFORMER)?;
        let language = qwen3_language(&directory.join("text_encoder/config.json"))?;
        let checked = transformer.check(&language);
        checked.map_err(|problem| EngineError::Checkpoint { path, problem: problem.to_owned() })?;
        Ok(Self { transformer, language })
    }
}

// What diffusers' `ZImageTransformer2DModel` has where the file says nothing.

fn epsilon() -> f64 {
    1e-5
}

fn base() -> f64 {
    256.0
}

fn thousand() -> f64 {
    1000.0
}

fn axes() -> [usize; 3] {
    [32, 48, 48]
}

fn positions() -> [usize; 3] {
    [1024, 512, 512]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Z-Image-Turbo's own file, without the keys that may be missing here.
    #[test]
    fn what_a_published_configuration_leaves_out_is_as_in_diffusers() {
        let published = r#"{"_class_name": "ZImageTransformer2DModel", "_diffusers_version": "0.36.0.dev0", "all_f_patch_size": [1],
            "all_patch_size": [2], "cap_feat_dim": 2560, "dim": 3840, "in_channels": 16, "n_heads": 30, "n_kv_heads": 30, "n_layers": 30,
            "n_refiner_layers": 2, "qk_norm": true}"#;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), published).expect("writes");
        let config: TransformerConfig = read(file.path(), TRANSFORMER).expect("reads");
        assert_eq!((config.axes_dims, config.axes_lens), ([32, 48, 48], [1024, 512, 512]));
        assert_eq!((config.norm_eps, config.rope_theta, config.t_scale), (1e-5, 256.0, 1000.0));
    }
}
