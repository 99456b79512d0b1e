//! What a Qwen-Image or Qwen-Image-Edit checkpoint says about its transformer and its autoencoder.

use serde::Deserialize;

/// `transformer/config.json` of diffusers' `QwenImageTransformer2DModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct TransformerConfig {
    /// Values of a packed token: latent channels times 2x2.
    pub in_channels: usize,
    /// Latent channels that are predicted.
    pub out_channels: usize,
    pub num_layers: usize,
    pub num_attention_heads: usize,
    pub attention_head_dim: usize,
    /// Width of the text encoder's hidden states.
    pub joint_attention_dim: usize,
    /// Widths of a head's values that turn with the image's index, the row and the column; together `attention_head_dim`.
    pub axes_dims_rope: [usize; 3],
    /// Whether reference tokens are modulated as of timestep 0 (2511 is, 2509 is not).
    #[serde(default)]
    pub zero_cond_t: bool,
}

impl TransformerConfig {
    /// Width of the hidden states.
    #[must_use]
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }
}

/// `vae/config.json` of diffusers' `AutoencoderKLQwenImage`.
#[derive(Debug, Clone, Deserialize)]
pub struct AutoencoderConfig {
    pub base_dim: usize,
    /// Latent channels.
    pub z_dim: usize,
    /// Widths of the levels in units of `base_dim`, from the image inwards.
    pub dim_mult: Vec<usize>,
    pub num_res_blocks: usize,
    /// One a level but the last. Whether frames are halved as well does not matter to a single one.
    pub temperal_downsample: Vec<bool>,
    /// One a latent channel.
    pub latents_mean: Vec<f64>,
    pub latents_std: Vec<f64>,
}

impl AutoencoderConfig {
    /// How many pixels of a side one latent stands for.
    #[must_use]
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.dim_mult.len() - 1)
    }
}
