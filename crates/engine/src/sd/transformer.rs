//! The UNet's transformer: every place of the image looks at every other and at the prompt.

use candle_core::{Error, Result, Tensor};
use candle_nn::VarBuilder;

use super::ahead::AtStep;
use super::attention::{Attention, AttentionConfig, Context};
use crate::activations::geglu_of;
use crate::device::is_channels_last;
use crate::layers::{Conv, GroupNorm, LayerNorm, Linear, conv, group_norm, layer_norm, linear, to_image, to_tokens};

/// Of the group norm in front; not the residual blocks' epsilon.
const NORM_EPS: f64 = 1e-6;
/// Of the layer norms inside.
const BLOCK_NORM_EPS: f64 = 1e-5;
/// Width of the feed-forward layer in multiples of the block's.
const FEED_FORWARD: usize = 4;

/// diffusers' `Transformer2DModel`.
pub(super) struct SpatialTransformer {
    channels: usize,
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

#[derive(Clone, Copy)]
pub(super) struct TransformerConfig {
    pub(super) channels: usize,
    pub(super) heads: usize,
    pub(super) layers: usize,
    pub(super) text_channels: usize,
    pub(super) groups: usize,
    pub(super) linear_projection: bool,
}

impl SpatialTransformer {
    pub(super) fn new(config: TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            channels: config.channels,
            norm: group_norm(config.groups, config.channels, NORM_EPS, &vb.pp("norm"))?,
            proj_in: Projection::new(config, vb.pp("proj_in"))?,
            blocks: (0..config.layers)
                .map(|index| TransformerBlock::new(config, &vb.pp("transformer_blocks").pp(index)))
                .collect::<Result<_>>()?,
            proj_out: Projection::new(config, vb.pp("proj_out"))?,
        })
    }

    /// Blocks, one after the other.
    pub(super) fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// What each block looks at of a text. `states`: (B, T, text channels).
    pub(super) fn contexts(&self, states: &Tensor) -> impl Iterator<Item = Result<Context>> {
        self.blocks.iter().map(|block| block.attn2.context(states))
    }

    /// Channels of all keys and values that [`Self::contexts`] makes of a token.
    pub(super) fn context_channels(&self) -> usize {
        2 * self.channels * self.blocks.len()
    }

    /// `hidden`: (B, C, H, W). Returns (B, C, H, W).
    pub(super) fn forward(&self, hidden: &Tensor, at_step: &mut AtStep<'_>) -> Result<Tensor> {
        let normed = self.norm.forward(hidden)?;
        let mut tokens = match &self.proj_in {
            Projection::Conv(conv) => to_tokens(&conv.forward(&normed)?)?,
            Projection::Linear(linear) => linear.forward(&to_tokens(&normed)?)?,
        };
        for block in &self.blocks {
            tokens = block.forward(&tokens, &at_step.contexts()?)?;
        }
        match &self.proj_out {
            Projection::Conv(conv) => conv.add_to(hidden, &to_image(&tokens, hidden)?),
            Projection::Linear(linear) if is_channels_last(hidden) => {
                to_image(&linear.add_to(&to_tokens(hidden)?, &tokens)?, hidden)
            }
            Projection::Linear(linear) => to_image(&linear.forward(&tokens)?, hidden)? + hidden,
        }
    }
}

enum Projection {
    Conv(Conv),
    Linear(Linear),
}

impl Projection {
    fn new(config: TransformerConfig, vb: VarBuilder) -> Result<Self> {
        let channels = config.channels;
        if config.linear_projection {
            Ok(Self::Linear(linear(channels, channels, vb)?))
        } else {
            Ok(Self::Conv(conv(channels, channels, 1, 1, vb)?))
        }
    }
}

/// diffusers' `BasicTransformerBlock`: attention to itself, to the text, feed-forward, each around a residual.
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff_in: Linear,
    ff_out: Linear,
}

impl TransformerBlock {
    fn new(config: TransformerConfig, vb: &VarBuilder) -> Result<Self> {
        let TransformerConfig { channels, heads, text_channels, .. } = config;
        let norm = |name| layer_norm(channels, BLOCK_NORM_EPS, &vb.pp(name));
        let attention = |context_channels, name| {
            Attention::new(AttentionConfig { channels, context_channels, heads, bias: false }, &vb.pp(name))
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention(channels, "attn1")?,
            norm2: norm("norm2")?,
            attn2: attention(text_channels, "attn2")?,
            norm3: norm("norm3")?,
            ff_in: linear(channels, 2 * FEED_FORWARD * channels, vb.pp("ff.net.0.proj"))?,
            ff_out: linear(FEED_FORWARD * channels, channels, vb.pp("ff.net.2"))?,
        })
    }

    /// `contexts`: the text's, and then those of image prompts.
    fn forward(&self, tokens: &Tensor, contexts: &[Context]) -> Result<Tensor> {
        let Some((text, prompts)) = contexts.split_first() else { return Err(Error::msg("an attention without a text")) };
        let tokens = self.attn1.add_to_itself(tokens, &self.norm1.forward(tokens)?)?;
        let tokens = self.attn2.add_to(&tokens, &self.norm2.forward(&tokens)?, text, prompts)?;
        let inner = geglu_of(&self.ff_in, &self.norm3.forward(&tokens)?)?;
        self.ff_out.add_to(&tokens, &inner)
    }
}
