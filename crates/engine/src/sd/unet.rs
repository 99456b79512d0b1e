//! The UNet: predicts the noise in an image from its noisy latents, the timestep and the text.

use candle_core::{DType, Result, Tensor};
use candle_nn::VarBuilder;

use super::conditioning::Text;
use super::config::{DownBlockType, UnetConfig, UpBlockType};
use super::resnet::{ResnetBlock, ResnetConfig};
use super::time_embedding::{TimeEmbedding, time_channels};
use super::transformer::{SpatialTransformer, TransformerConfig};
use crate::layers::{Conv, GroupNorm, conv, group_norm};

/// diffusers' `UNet2DConditionModel`.
pub struct Unet {
    dtype: DType,
    time: TimeEmbedding,
    conv_in: Conv,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
}

impl Unet {
    /// `vb` stands at the UNet's own names (`conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub fn new(config: &UnetConfig, vb: &VarBuilder) -> Result<Self> {
        let channels = &config.block_out_channels;
        let first = channels[0];
        let last = channels[channels.len() - 1];
        Ok(Self {
            dtype: vb.dtype(),
            time: TimeEmbedding::new(config, vb)?,
            conv_in: conv(config.in_channels, first, 3, 1, vb.pp("conv_in"))?,
            down_blocks: (0..channels.len())
                .map(|index| DownBlock::new(config, index, &vb.pp("down_blocks").pp(index)))
                .collect::<Result<_>>()?,
            mid_block: config.has_mid_block.then(|| MidBlock::new(config, last, &vb.pp("mid_block"))).transpose()?,
            up_blocks: (0..channels.len())
                .map(|index| UpBlock::new(config, index, &vb.pp("up_blocks").pp(index)))
                .collect::<Result<_>>()?,
            conv_norm_out: group_norm(config.norm_num_groups, first, config.norm_eps, &vb.pp("conv_norm_out"))?,
            conv_out: conv(first, config.out_channels, 3, 1, vb.pp("conv_out"))?,
        })
    }

    /// `latents`: (B, in, H, W), f32, of any size; `timestep`: 0 to 999, also between whole values;
    /// `text`: of B images; `guidance_scale`: seen only by a model that was distilled over it. Returns (B, out, H, W), f32; in between it
    /// computes in the format of its tensors.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub fn forward(&self, latents: &Tensor, timestep: f64, text: &Text, guidance_scale: f64) -> Result<Tensor> {
        let time = self.time.forward(text, (timestep, guidance_scale), self.dtype)?;
        let text = &text.states.to_dtype(self.dtype)?;
        let mut hidden = self.conv_in.forward(&latents.to_dtype(self.dtype)?)?;
        let mut skips = vec![hidden.clone()];
        for block in &self.down_blocks {
            hidden = block.forward(&hidden, &time, text, &mut skips)?;
        }
        if let Some(mid_block) = &self.mid_block {
            hidden = mid_block.forward(&hidden, &time, text)?;
        }
        for block in &self.up_blocks {
            hidden = block.forward(&hidden, &time, text, &mut skips)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&hidden)?)?.to_dtype(DType::F32)
    }
}

/// `DownBlock2D`, or `CrossAttnDownBlock2D` with its transformers.
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialTransformer>,
    downsampler: Option<Conv>,
}

impl DownBlock {
    fn new(config: &UnetConfig, index: usize, vb: &VarBuilder) -> Result<Self> {
        let channels = config.block_out_channels[index];
        let before = config.block_out_channels[index.saturating_sub(1)];
        let attends = config.down_block_types[index] == DownBlockType::CrossAttnDownBlock2D;
        let last = index + 1 == config.block_out_channels.len();
        let layers = config.layers_per_block.at(index);
        let resnets = (0..layers).map(|layer| {
            let in_channels = if layer == 0 { before } else { channels };
            ResnetBlock::new(in_channels, channels, resnets(config), &vb.pp("resnets").pp(layer))
        });
        Ok(Self {
            resnets: resnets.collect::<Result<_>>()?,
            attentions: if attends {
                transformers(config, index, layers, &|layer| config.transformer_layers_per_block.at(index, layer), vb)?
            } else {
                Vec::new()
            },
            downsampler: (!last).then(|| conv(channels, channels, 3, 2, vb.pp("downsamplers.0.conv"))).transpose()?,
        })
    }

    /// Leaves every layer's output on `skips`, for the up blocks.
    fn forward(&self, hidden: &Tensor, time: &Tensor, text: &Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut hidden = hidden.clone();
        for (layer, resnet) in self.resnets.iter().enumerate() {
            hidden = resnet.forward(&hidden, Some(time))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attention.forward(&hidden, text)?;
            }
            skips.push(hidden.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            hidden = downsampler.forward(&hidden)?;
            skips.push(hidden.clone());
        }
        Ok(hidden)
    }
}

/// `UNetMidBlock2DCrossAttn`.
struct MidBlock {
    before: ResnetBlock,
    attentions: Vec<SpatialTransformer>,
    after: ResnetBlock,
}

impl MidBlock {
    fn new(config: &UnetConfig, channels: usize, vb: &VarBuilder) -> Result<Self> {
        let resnet = |layer: usize| ResnetBlock::new(channels, channels, resnets(config), &vb.pp("resnets").pp(layer));
        let last = config.block_out_channels.len() - 1;
        let attentions = transformers(config, last, 1, &|layer| config.transformer_layers_per_block.at(last, layer), vb)?;
        Ok(Self { before: resnet(0)?, attentions, after: resnet(1)? })
    }

    fn forward(&self, hidden: &Tensor, time: &Tensor, text: &Tensor) -> Result<Tensor> {
        let mut hidden = self.before.forward(hidden, Some(time))?;
        for attention in &self.attentions {
            hidden = attention.forward(&hidden, text)?;
        }
        self.after.forward(&hidden, Some(time))
    }
}

/// `UpBlock2D`, or `CrossAttnUpBlock2D` with its transformers.
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<SpatialTransformer>,
    upsampler: Option<Conv>,
}

impl UpBlock {
    /// `index` counts from the innermost block, as the checkpoint's names do.
    fn new(config: &UnetConfig, index: usize, vb: &VarBuilder) -> Result<Self> {
        let widths = &config.block_out_channels;
        let outer = widths.len() - 1 - index;
        let channels = widths[outer];
        let inner = widths[(outer + 1).min(widths.len() - 1)];
        let skip_of_last = widths[outer.saturating_sub(1)];
        let layers = config.layers_per_block.at(outer) + 1;
        let attends = config.up_block_types[index] == UpBlockType::CrossAttnUpBlock2D;
        let resnets = (0..layers).map(|layer| {
            let hidden = if layer == 0 { inner } else { channels };
            let skip = if layer + 1 == layers { skip_of_last } else { channels };
            ResnetBlock::new(hidden + skip, channels, resnets(config), &vb.pp("resnets").pp(layer))
        });
        Ok(Self {
            resnets: resnets.collect::<Result<_>>()?,
            attentions: if attends {
                transformers(config, outer, layers, &|layer| config.transformer_layers_up(index, layer), vb)?
            } else {
                Vec::new()
            },
            upsampler: (outer > 0).then(|| conv(channels, channels, 3, 1, vb.pp("upsamplers.0.conv"))).transpose()?,
        })
    }

    /// Takes its layers' counterparts off `skips`.
    fn forward(&self, hidden: &Tensor, time: &Tensor, text: &Tensor, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut hidden = hidden.clone();
        for (layer, resnet) in self.resnets.iter().enumerate() {
            let skip = skips.pop().ok_or_else(|| candle_core::Error::msg("the UNet has more up than down layers"))?;
            hidden = resnet.forward(&Tensor::cat(&[&hidden, &skip], 1)?, Some(time))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attention.forward(&hidden, text)?;
            }
        }
        if let (Some(upsampler), Some(next)) = (&self.upsampler, skips.last()) {
            // The size of the next skip, not twice this one: odd sides were rounded up on the way down.
            let (_, _, height, width) = next.dims4()?;
            hidden = upsampler.forward_enlarged(&hidden, height, width)?;
        }
        Ok(hidden)
    }
}

fn resnets(config: &UnetConfig) -> ResnetConfig {
    ResnetConfig { groups: config.norm_num_groups, eps: config.norm_eps, time_channels: Some(time_channels(config)) }
}

/// `count` transformers of block `index`, counted from the outermost; `blocks`: how many each has.
fn transformers(
    config: &UnetConfig,
    index: usize,
    count: usize,
    blocks: &dyn Fn(usize) -> usize,
    vb: &VarBuilder,
) -> Result<Vec<SpatialTransformer>> {
    let each = (0..count).map(|layer| {
        let transformer = TransformerConfig {
            channels: config.block_out_channels[index],
            heads: config.heads(index),
            layers: blocks(layer),
            text_channels: config.cross_attention_dim,
            groups: config.norm_num_groups,
            linear_projection: config.use_linear_projection,
        };
        SpatialTransformer::new(transformer, &vb.pp("attentions").pp(layer))
    });
    each.collect()
}
