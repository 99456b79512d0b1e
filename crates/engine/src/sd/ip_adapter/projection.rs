//! How what an image encoder saw becomes tokens that stand beside those of a text.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::resampler::{NORM_EPS, Resampler, ResamplerConfig};
use crate::layers::{LayerNorm, Linear, layer_norm, linear};
use crate::weights::Shapes;

/// Which of the projections a file has, with its sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProjectionConfig {
    /// `image_proj.proj`: `embedding` numbers become `tokens` tokens.
    Plain {
        embedding: usize,
        tokens: usize,
        text_channels: usize,
    },
    Resampler(ResamplerConfig),
}

impl ProjectionConfig {
    /// `shapes`: by the names of the file. None where there is no projection of these kinds.
    pub(super) fn of(shapes: &Shapes) -> Option<Self> {
        if let Some(resampler) = ResamplerConfig::of(shapes) {
            return Some(Self::Resampler(resampler));
        }
        let [rows, embedding] = *shapes.get("image_proj.proj.weight")?.as_slice() else { return None };
        let text_channels = *shapes.get("image_proj.norm.weight")?.first()?;
        let tokens = rows.checked_div(text_channels)?;
        Some(Self::Plain { embedding, tokens, text_channels })
    }

    /// Numbers of each of its tokens.
    pub(super) fn text_channels(&self) -> usize {
        match self {
            Self::Plain { text_channels, .. } | Self::Resampler(ResamplerConfig { text_channels, .. }) => *text_channels,
        }
    }
}

pub(super) enum Projection {
    Plain(ImageProjection),
    Resampler(Resampler),
}

impl Projection {
    /// `vb` stands at `image_proj`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: ProjectionConfig, vb: &VarBuilder) -> Result<Self> {
        Ok(match config {
            ProjectionConfig::Plain { embedding, tokens, text_channels } => Self::Plain(ImageProjection {
                proj: linear(embedding, tokens * text_channels, vb.pp("proj"))?,
                norm: layer_norm(text_channels, NORM_EPS, &vb.pp("norm"))?,
                tokens,
                text_channels,
            }),
            ProjectionConfig::Resampler(config) => Self::Resampler(Resampler::new(&config, vb)?),
        })
    }

    /// Of an image.
    pub(super) fn tokens(&self) -> usize {
        match self {
            Self::Plain(plain) => plain.tokens,
            Self::Resampler(resampler) => resampler.tokens(),
        }
    }

    /// `seen`: (N, embedding), or (N, places, hidden) for a resampler. Returns (N, tokens, text channels).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(&self, seen: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(plain) => {
                let tokens = plain.proj.forward(seen)?.reshape(((), plain.tokens, plain.text_channels))?;
                plain.norm.forward(&tokens)
            }
            Self::Resampler(resampler) => resampler.forward(seen),
        }
    }
}

/// The paper's own, diffusers' `ImageProjection`: one linear layer and a norm.
pub(super) struct ImageProjection {
    proj: Linear,
    norm: LayerNorm,
    tokens: usize,
    text_channels: usize,
}
