//! The UNet: predicts the noise in an image from its noisy latents, the timestep and the text.

use std::ops::Range;

use candle_core::{DType, Error, Result, Tensor};
use candle_nn::VarBuilder;

use super::ahead::{Ahead, AtStep};
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
    /// Of [`Look::deep`].
    deep_channels: usize,
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
            // Where the outermost block of the way up is one layer, it comes from the block below.
            deep_channels: if config.layers_per_block.at(0) == 0 { channels[1.min(channels.len() - 1)] } else { first },
        })
    }

    /// All that does not depend on the latents. `text`: of B images; `timesteps`: 0 to 999, also between whole values; `guidance_scale`: seen
    /// only by a model that was distilled over it.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn ahead(&self, text: &Text, timesteps: &[f64], guidance_scale: f64) -> Result<Ahead> {
        let time = self.time.forward(text, timesteps, guidance_scale, self.dtype)?;
        let (steps, rows, _) = time.dims3()?;
        let time = time.flatten_to(1)?;
        let raised = self.resnets().map(|resnet| resnet.raised(&time)?.reshape((steps, rows, ())));
        let states = text.states.to_dtype(self.dtype)?;
        let contexts = self.transformers().flat_map(|transformer| transformer.contexts(&states));
        Ahead::new(contexts.collect::<Result<_>>()?, &raised.collect::<Result<Vec<_>>>()?)
    }

    /// Numbers that [`Self::ahead`] gives for a token, and for a timestep.
    pub(super) fn channels_ahead(&self) -> (usize, usize) {
        let of_token = self.transformers().map(SpatialTransformer::context_channels).sum();
        (of_token, self.resnets().map(ResnetBlock::out_channels).sum())
    }

    /// In the order of a forward pass.
    fn resnets(&self) -> impl Iterator<Item = &ResnetBlock> {
        let down = self.down_blocks.iter().flat_map(|block| &block.resnets);
        let mid = self.mid_block.iter().flat_map(|block| [&block.before, &block.after]);
        down.chain(mid).chain(self.up_blocks.iter().flat_map(|block| &block.resnets))
    }

    /// In the order of a forward pass.
    fn transformers(&self) -> impl Iterator<Item = &SpatialTransformer> {
        let down = self.down_blocks.iter().flat_map(|block| &block.attentions);
        let mid = self.mid_block.iter().flat_map(|block| &block.attentions);
        down.chain(mid).chain(self.up_blocks.iter().flat_map(|block| &block.attentions))
    }

    /// `latents`: (B, in, H, W), f32, of any size; in between it computes in the format of its tensors. `deep`: that of an earlier look, to which only
    /// the outermost layers are done.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(&self, latents: &Tensor, mut at_step: AtStep<'_>, deep: Option<&Tensor>) -> Result<Look> {
        let mut hidden = self.conv_in.forward(&latents.to_dtype(self.dtype)?)?;
        let mut skips = vec![hidden.clone()];
        let (outermost, inner) = self.up_blocks.split_last().ok_or_else(|| Error::msg("a UNet without up blocks"))?;
        let before_last = outermost.resnets.len() - 1;
        if let Some(deep) = deep {
            at_step = at_step.of_last(outermost.attentions.last().map_or(0, SpatialTransformer::layers))?;
            hidden = deep.clone();
        } else {
            for block in &self.down_blocks {
                hidden = block.forward(&hidden, &mut at_step, &mut skips)?;
            }
            if let Some(mid_block) = &self.mid_block {
                hidden = mid_block.forward(&hidden, &mut at_step)?;
            }
            for block in inner {
                hidden = block.forward(&hidden, &mut at_step, &mut skips)?;
            }
            hidden = outermost.layers(0..before_last, &hidden, &mut at_step, &mut skips)?;
        }
        let deep = hidden;
        let hidden = outermost.layers(before_last..before_last + 1, &deep, &mut at_step, &mut skips)?;
        let output = self.conv_out.forward(&self.conv_norm_out.forward_silu(&hidden)?)?.to_dtype(DType::F32)?;
        Ok(Look { output, deep })
    }

    /// Channels and format of [`Look::deep`].
    pub(super) fn of_deep(&self) -> (usize, DType) {
        (self.deep_channels, self.dtype)
    }
}

/// One look at latents.
pub(super) struct Look {
    /// (B, out, H, W), f32.
    pub(super) output: Tensor,
    /// What the outermost layer of the way up gets from below: (B, channels, H, W).
    pub(super) deep: Tensor,
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
    fn forward(&self, hidden: &Tensor, at_step: &mut AtStep<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let mut hidden = self.layers(0..self.resnets.len(), hidden, at_step, skips)?;
        if let (Some(upsampler), Some(next)) = (&self.upsampler, skips.last()) {
            // The size of the next skip, not twice this one: odd sides were rounded up on the way down.
            let (_, _, height, width) = next.dims4()?;
            hidden = upsampler.forward_enlarged(&hidden, height, width)?;
        }
        Ok(hidden)
    }

    fn layers(
        &self,
        layers: Range<usize>,
        hidden: &Tensor,
        at_step: &mut AtStep<'_>,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        let mut hidden = hidden.clone();
        for layer in layers {
            let resnet = &self.resnets[layer];
            let skip = skips.pop().ok_or_else(|| Error::msg("the UNet has more up than down layers"))?;
            hidden = resnet.forward(&Tensor::cat(&[&hidden, &skip], 1)?, Some(&at_step.raised()?))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attention.forward(&hidden, at_step)?;
            }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;
    use candle_nn::VarMap;

    use super::*;
    use crate::json_config::read;

    /// What a step does not look at.
    const AHEAD: [&str; 5] = ["attn2.to_k", "attn2.to_v", "time_emb_proj", "time_embedding", "add_embedding"];

    /// A fixture's UNet with random weights, which can be changed under it.
    fn drawn(model: &str) -> (UnetConfig, VarMap, Unet) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/fixtures/{model}/unet/config.json"));
        let config: UnetConfig = read(&path, &[]).expect("a config");
        let weights = VarMap::new();
        let unet = Unet::new(&config, &VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu)).expect("a UNet");
        for weight in weights.all_vars() {
            let values = Tensor::randn(0.0_f32, 0.1, weight.shape(), &Device::Cpu).expect("values");
            weight.set(&values).expect("the same shape");
        }
        (config, weights, unet)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("values")
    }

    #[test]
    fn keys_values_and_times_are_worked_out_once() {
        for model in ["sd/sd15", "sdxl", "sdxl/variants/vega", "sd-variants/lcm"] {
            let (config, weights, unet) = drawn(model);
            let draw = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu).expect("values");
            let added = config.projection_class_embeddings_input_dim.filter(|_| config.is_xl()).map(|width| draw(&[2, width]));
            let text = Text { states: draw(&[2, 7, config.cross_attention_dim]), added };
            let latents = draw(&[2, config.in_channels, 8, 8]);
            let timesteps = [999.0, 250.25, 1.0];
            let ahead = unet.ahead(&text, &timesteps, 1.0).expect("ahead");
            let look = |ahead: &Ahead, step| {
                let inputs = ahead.inputs(step).expect("a step");
                values(&unet.forward(&latents, ahead.of(&inputs).expect("a step"), None).expect("noise").output)
            };
            let before = [0, 1, 2].map(|step| look(&ahead, step));
            assert!(before[0] != before[1] && before[1] != before[2], "{model}: each step has its own time");
            for (timestep, before) in timesteps.iter().zip(&before) {
                let alone = unet.ahead(&text, &[*timestep], 1.0).expect("ahead");
                assert!(look(&alone, 0) == *before, "{model}: {timestep} among others is what it is alone");
            }
            for (name, weight) in weights.data().lock().expect("a lock").iter() {
                if AHEAD.iter().any(|part| name.contains(part)) {
                    weight.set(&(weight.zeros_like().expect("zeros") / 0.0).expect("NaN")).expect("the same shape");
                }
            }
            assert!([0, 1, 2].map(|step| look(&ahead, step)) == before, "{model}: a step read those weights again");
            let anew = unet.ahead(&text, &timesteps, 1.0).expect("ahead");
            assert!(look(&anew, 0).iter().all(|value| value.is_nan()), "{model}: there are no such weights");
        }
    }
}
