//! A UNet's way down and its middle, with the time embedding in front: what a ControlNet has as well.

use candle_core::{DType, Error, Result, Tensor};
use candle_nn::VarBuilder;

use super::ahead::{Ahead, AtStep};
use super::conditioning::Text;
use super::config::{DownBlockType, UnetConfig};
use super::resnet::{ResnetBlock, ResnetConfig};
use super::time_embedding::{TimeEmbedding, time_channels};
use super::transformer::{SpatialTransformer, TransformerConfig};
use crate::device::to_channels_last;
use crate::layers::{Conv, conv, sum};

/// The first half of diffusers' `UNet2DConditionModel`, and of its `ControlNetModel`.
pub(super) struct UnetEncoder {
    dtype: DType,
    time: TimeEmbedding,
    conv_in: Conv,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
}

/// What comes out of the middle, and what the way up looks at besides.
pub(super) struct Encoded {
    /// Of every layer on the way down, from the outermost: (B, channels, H, W) each.
    pub(super) skips: Vec<Tensor>,
    /// (B, channels, H, W) of the innermost level.
    pub(super) hidden: Tensor,
}

/// What one ControlNet, or several together, add in a step.
pub(super) struct Residuals(Encoded);

impl Residuals {
    pub(super) fn of(encoded: Encoded) -> Self {
        Self(encoded)
    }

    /// The sum of both.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub(super) fn and(self, other: Self) -> Result<Self> {
        self.added_to(other.0).map(Self)
    }

    /// `encoded` with all of it added.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub(super) fn added_to(self, encoded: Encoded) -> Result<Encoded> {
        if self.0.skips.len() != encoded.skips.len() {
            return Err(Error::msg("a ControlNet has other layers than the UNet"));
        }
        let skips = encoded.skips.into_iter().zip(self.0.skips).map(|(skip, residual)| sum(&skip, &residual));
        Ok(Encoded { skips: skips.collect::<Result<_>>()?, hidden: sum(&encoded.hidden, &self.0.hidden)? })
    }

    /// Of every layer on the way down, from the outermost, and of the middle.
    pub(super) fn into_tensors(self) -> Vec<Tensor> {
        self.0.skips.into_iter().chain([self.0.hidden]).collect()
    }
}

/// Residual blocks and transformers, in the order in which a forward pass comes to them.
#[derive(Default)]
pub(super) struct Parts<'a> {
    pub(super) resnets: Vec<&'a ResnetBlock>,
    pub(super) transformers: Vec<&'a SpatialTransformer>,
}

impl Parts<'_> {
    /// Numbers that [`UnetEncoder::ahead`] gives for a token, and for a timestep.
    pub(super) fn channels_ahead(&self) -> (usize, usize) {
        let of_token = self.transformers.iter().map(|transformer| transformer.context_channels()).sum();
        (of_token, self.resnets.iter().map(|resnet| resnet.out_channels()).sum())
    }
}

impl UnetEncoder {
    /// `vb` stands at the network's own names (`conv_in.weight`, ...).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than `config` says.
    pub(super) fn new(config: &UnetConfig, vb: &VarBuilder) -> Result<Self> {
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
        })
    }

    /// What its tensors are kept in, and computed with.
    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Whether its convolutions want the channels last in memory: all that have enough of them, so as the first one does.
    pub(super) fn is_channels_last(&self) -> bool {
        self.parts().resnets.first().is_some_and(|resnet| resnet.is_channels_last())
    }

    pub(super) fn parts(&self) -> Parts<'_> {
        let mut parts = Parts::default();
        for block in &self.down_blocks {
            parts.resnets.extend(&block.resnets);
            parts.transformers.extend(&block.attentions);
        }
        if let Some(mid_block) = &self.mid_block {
            parts.resnets.extend([&mid_block.before, &mid_block.after]);
            parts.transformers.extend(&mid_block.attentions);
        }
        parts
    }

    /// All that does not depend on the latents, of these `parts` of the network. `text`: of B images; `timesteps`: 0 to 999, also between whole
    /// values; `guidance_scale`: seen only by a model that was distilled over it.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn ahead(&self, parts: &Parts<'_>, text: &Text, timesteps: &[f64], guidance_scale: f64) -> Result<Ahead> {
        let time = self.time.forward(text, timesteps, guidance_scale, self.dtype)?;
        let (steps, rows, _) = time.dims3()?;
        let time = time.flatten_to(1)?;
        let raised = parts.resnets.iter().map(|resnet| resnet.raised(&time)?.reshape((steps, rows, ())));
        let states = text.states.to_dtype(self.dtype)?;
        let contexts = parts.transformers.iter().flat_map(|transformer| transformer.contexts(&states));
        Ahead::new(contexts.collect::<Result<_>>()?, &raised.collect::<Result<Vec<_>>>()?)
    }

    /// The first of the skips of [`Self::forward`] alone.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn outermost_skip(&self, latents: &Tensor) -> Result<Tensor> {
        let skip = self.conv_in.forward(&latents.to_dtype(self.dtype)?)?;
        if self.is_channels_last() { to_channels_last(&skip) } else { Ok(skip) }
    }

    /// `latents`: (B, in, H, W), f32, of any size; `condition`: (1, channels of the outermost level, H, W), what a ControlNet is to look at.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(&self, latents: &Tensor, condition: Option<&Tensor>, at_step: &mut AtStep<'_>) -> Result<Encoded> {
        let mut hidden = self.outermost_skip(latents)?;
        if let Some(condition) = condition {
            hidden = sum(&hidden, condition)?;
        }
        let mut skips = vec![hidden.clone()];
        for block in &self.down_blocks {
            hidden = block.forward(&hidden, at_step, &mut skips)?;
        }
        if let Some(mid_block) = &self.mid_block {
            hidden = mid_block.forward(&hidden, at_step)?;
        }
        Ok(Encoded { skips, hidden })
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
    fn forward(&self, hidden: &Tensor, at_step: &mut AtStep<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut hidden = hidden.clone();
        for (layer, resnet) in self.resnets.iter().enumerate() {
            hidden = resnet.forward(&hidden, Some(&at_step.raised()?))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attention.forward(&hidden, at_step)?;
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

    fn forward(&self, hidden: &Tensor, at_step: &mut AtStep<'_>) -> Result<Tensor> {
        let mut hidden = self.before.forward(hidden, Some(&at_step.raised()?))?;
        for attention in &self.attentions {
            hidden = attention.forward(&hidden, at_step)?;
        }
        self.after.forward(&hidden, Some(&at_step.raised()?))
    }
}

pub(super) fn resnets(config: &UnetConfig) -> ResnetConfig {
    ResnetConfig { groups: config.norm_num_groups, eps: config.norm_eps, time_channels: Some(time_channels(config)) }
}

/// `count` transformers of block `index`, counted from the outermost; `blocks`: how many each has.
pub(super) fn transformers(
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
