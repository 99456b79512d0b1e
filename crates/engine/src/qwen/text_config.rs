//! What a Qwen2.5-VL checkpoint says about its text model, its vision tower and its image processor, and a Qwen3 checkpoint about its text model.

use serde::Deserialize;

/// The text model in `text_encoder/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct LanguageConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    /// Width of a head; none: that of its part of `hidden_size`.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Whether queries, keys and values have a bias: Qwen2.5's have, Qwen3's have not.
    #[serde(default = "yes")]
    pub attention_bias: bool,
    /// Whether each head's queries and keys are normed: Qwen3's are, Qwen2.5's are not.
    #[serde(default)]
    pub qk_norm: bool,
    #[serde(default = "epsilon")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How many of a head's frequencies turn with time, row and column; together half of a head's width.
    pub mrope_section: [usize; 3],
}

impl LanguageConfig {
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }
}

fn yes() -> bool {
    true
}

fn epsilon() -> f64 {
    1e-6
}

/// `vision_config` in `text_encoder/config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct VisionConfig {
    pub depth: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    /// Width of the text model.
    pub out_hidden_size: usize,
    /// Pixels of a patch's side.
    pub patch_size: usize,
    /// Patches each way that become one token.
    pub spatial_merge_size: usize,
    /// Frames of a patch; an image is repeated so often.
    pub temporal_patch_size: usize,
    /// Pixels of a window's side: most blocks look no further.
    pub window_size: usize,
    /// The blocks that look at the whole image.
    pub fullatt_block_indexes: Vec<usize>,
}

impl VisionConfig {
    /// Values of a patch: 3 colours, its frames, its pixels.
    #[must_use]
    pub fn patch_values(&self) -> usize {
        3 * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    /// Patches of one token.
    #[must_use]
    pub fn merged(&self) -> usize {
        self.spatial_merge_size * self.spatial_merge_size
    }

    /// Tokens of a window's side.
    #[must_use]
    pub fn window(&self) -> usize {
        self.window_size / self.spatial_merge_size / self.patch_size
    }

    /// Pixels that the sides of an image are multiples of.
    #[must_use]
    pub fn multiple_px(&self) -> u32 {
        (self.patch_size * self.spatial_merge_size) as u32
    }
}

/// `processor/preprocessor_config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ProcessorConfig {
    pub image_mean: [f32; 3],
    pub image_std: [f32; 3],
    /// Images of fewer or more pixels are scaled.
    pub min_pixels: u64,
    pub max_pixels: u64,
}
