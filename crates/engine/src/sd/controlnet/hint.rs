//! How a ControlNet looks at its image: convolutions that bring it to the size of the latents.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::ControlNetConfig;
use crate::layers::{Conv, conv};

/// diffusers' `ControlNetConditioningEmbedding`.
pub(super) struct HintEmbedding {
    conv_in: Conv,
    blocks: Vec<Conv>,
    conv_out: Conv,
}

impl HintEmbedding {
    /// `vb` stands at `controlnet_cond_embedding`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &ControlNetConfig, vb: &VarBuilder) -> Result<Self> {
        let widths = &config.hint_channels;
        let first = widths[0];
        let last = widths[widths.len() - 1];
        let blocks = vb.pp("blocks");
        // Each width once as it is, and once on to the next at half the size.
        let pairs = widths.windows(2).flat_map(|pair| [(pair[0], pair[0], 1), (pair[0], pair[1], 2)]);
        let each = pairs.enumerate().map(|(index, (from, to, stride))| conv(from, to, 3, stride, blocks.pp(index)));
        Ok(Self {
            conv_in: conv(ControlNetConfig::IMAGE_CHANNELS, first, 3, 1, vb.pp("conv_in"))?,
            blocks: each.collect::<Result<_>>()?,
            conv_out: conv(last, config.encoder.block_out_channels[0], 3, 1, vb.pp("conv_out"))?,
        })
    }

    /// `pixels`: (1, 3, height, width). Returns (1, channels of the UNet's outermost level, H, W).
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let mut hidden = self.conv_in.forward(pixels)?.silu()?;
        for block in &self.blocks {
            hidden = block.forward(&hidden)?.silu()?;
        }
        self.conv_out.forward(&hidden)
    }
}
