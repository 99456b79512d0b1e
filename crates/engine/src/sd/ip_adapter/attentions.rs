//! Keys and values that a UNet's attentions to the text make of an image's tokens, and by which number a file knows each.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::layers::{Linear, linear_b};
use crate::sd::attention::Context;
use crate::sd::config::{DownBlockType, UnetConfig, UpBlockType};

/// `to_k_ip` and `to_v_ip` of one attention.
pub(super) struct ImageAttention {
    key: Linear,
    value: Linear,
}

impl ImageAttention {
    /// `vb` stands at the attention's number.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub(super) fn new(text_channels: usize, channels: usize, vb: &VarBuilder) -> Result<Self> {
        Ok(Self {
            key: linear_b(text_channels, channels, false, vb.pp("to_k_ip"))?,
            value: linear_b(text_channels, channels, false, vb.pp("to_v_ip"))?,
        })
    }

    /// `tokens`: (B, T, text channels). Attention is linear in its values, so `scale` is theirs: nothing is left to multiply in a step.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn context(&self, tokens: &Tensor, scale: f64) -> Result<Context> {
        Ok(Context { key: self.key.forward(tokens)?, value: (self.value.forward(tokens)? * scale)? })
    }
}

/// An attention to the text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// By which a file knows it.
    pub(super) number: usize,
    /// Of its block.
    pub(super) channels: usize,
}

/// Those of a UNet, in the order in which a forward pass comes to them.
///
/// A file counts the attentions of a UNet, those of an image to itself among them, in the order of diffusers' `attn_processors`: the way down, the way
/// up, and the middle last. So those to the text are the odd ones.
pub(super) fn of_unet(unet: &UnetConfig) -> Vec<Place> {
    let widths = &unet.block_out_channels;
    let last = widths.len() - 1;
    let mut down = Vec::new();
    for (level, kind) in unet.down_block_types.iter().enumerate().filter(|(level, _)| *level <= last) {
        if *kind == DownBlockType::CrossAttnDownBlock2D {
            let layers = (0..unet.layers_per_block.at(level)).map(|layer| unet.transformer_layers_per_block.at(level, layer));
            down.extend(vec![widths[level]; layers.sum()]);
        }
    }
    let mut up = Vec::new();
    for (index, kind) in unet.up_block_types.iter().enumerate().filter(|(index, _)| *index <= last) {
        if *kind == UpBlockType::CrossAttnUpBlock2D {
            let level = last - index;
            let layers = (0..=unet.layers_per_block.at(level)).map(|layer| unet.transformer_layers_up(index, layer));
            up.extend(vec![widths[level]; layers.sum()]);
        }
    }
    let middle = if unet.has_mid_block { unet.transformer_layers_per_block.at(last, 0) } else { 0 };
    let before_middle = down.len() + up.len();
    let middle = (0..middle).map(|index| (before_middle + index, widths[last]));
    let up = up.into_iter().zip(down.len()..).map(|(channels, index)| (index, channels));
    let down = down.into_iter().enumerate();
    let each = down.chain(middle).chain(up);
    each.map(|(index, channels)| Place { number: 2 * index + 1, channels }).collect()
}
