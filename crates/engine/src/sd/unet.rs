//! The UNet: predicts the noise in an image from its noisy latents, the timestep and the text.

use std::ops::Range;

use candle_core::{DType, Error, Result, Tensor};
use candle_nn::VarBuilder;

use super::ahead::{Ahead, AtStep};
use super::conditioning::Text;
use super::config::{UnetConfig, UpBlockType};
use super::resnet::ResnetBlock;
use super::transformer::SpatialTransformer;
use super::unet_encoder::{Parts, Residuals, UnetEncoder, resnets, transformers};
use crate::layers::{Conv, GroupNorm, conv, group_norm, joined};

/// diffusers' `UNet2DConditionModel`.
pub struct Unet {
    encoder: UnetEncoder,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
    /// Of [`UnetOutput::deep`].
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
        Ok(Self {
            encoder: UnetEncoder::new(config, vb)?,
            up_blocks: (0..channels.len())
                .map(|index| UpBlock::new(config, index, &vb.pp("up_blocks").pp(index)))
                .collect::<Result<_>>()?,
            conv_norm_out: group_norm(config.norm_num_groups, first, config.norm_eps, &vb.pp("conv_norm_out"))?,
            conv_out: conv(first, config.out_channels, 3, 1, vb.pp("conv_out"))?,
            // Where the outermost block of the way up is one layer, it comes from the block below.
            deep_channels: if config.layers_per_block.at(0) == 0 { channels[1.min(channels.len() - 1)] } else { first },
        })
    }

    /// As [`UnetEncoder::ahead`], of the whole network.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn ahead(&self, text: &Text, timesteps: &[f64], guidance_scale: f64) -> Result<Ahead> {
        self.encoder.ahead(&self.parts(), text, timesteps, guidance_scale)
    }

    pub(super) fn parts(&self) -> Parts<'_> {
        let mut parts = self.encoder.parts();
        parts.resnets.extend(self.up_blocks.iter().flat_map(|block| &block.resnets));
        parts.transformers.extend(self.up_blocks.iter().flat_map(|block| &block.attentions));
        parts
    }

    /// `latents`: (B, in, H, W), f32, of any size; `residuals`: what ControlNets add to what the way up looks at. In between it computes in the format of
    /// its tensors.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward(
        &self,
        latents: &Tensor,
        mut at_step: AtStep<'_>,
        residuals: Option<Residuals>,
    ) -> Result<UnetOutput> {
        let mut encoded = self.encoder.forward(latents, None, &mut at_step)?;
        if let Some(residuals) = residuals {
            encoded = residuals.added_to(encoded)?;
        }
        let mut hidden = encoded.hidden;
        let (outermost, inner) = self.outermost()?;
        for block in inner {
            hidden = block.forward(&hidden, &mut at_step, &mut encoded.skips)?;
        }
        let before_last = 0..outermost.resnets.len() - 1;
        let deep = outermost.layers(before_last, &hidden, &mut at_step, &mut encoded.skips)?;
        Ok(UnetOutput { output: self.end(&deep, &mut at_step, &mut encoded.skips)?, deep: Some(deep) })
    }

    /// [`UnetOutput::output`] for other `latents`, with the `deep` of an earlier look: the first convolution and the outermost layer of the way up.
    ///
    /// # Errors
    /// When the shapes do not fit, or there is no memory.
    pub(super) fn forward_shallow(&self, latents: &Tensor, deep: &Tensor, at_step: AtStep<'_>) -> Result<Tensor> {
        let (outermost, _) = self.outermost()?;
        let mut at_step = at_step.of_last(outermost.attentions.last().map_or(0, SpatialTransformer::layers))?;
        self.end(deep, &mut at_step, &mut vec![self.encoder.outermost_skip(latents)?])
    }

    fn outermost(&self) -> Result<(&UpBlock, &[UpBlock])> {
        self.up_blocks.split_last().ok_or_else(|| Error::msg("a UNet without up blocks"))
    }

    /// The outermost layer of the way up, and what is behind it.
    fn end(&self, deep: &Tensor, at_step: &mut AtStep<'_>, skips: &mut Vec<Tensor>) -> Result<Tensor> {
        let (outermost, _) = self.outermost()?;
        let layers = outermost.resnets.len();
        let hidden = outermost.layers(layers - 1..layers, deep, at_step, skips)?;
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&hidden)?)?.to_dtype(DType::F32)
    }

    /// Channels and format of [`UnetOutput::deep`], and whether its channels are last in memory.
    pub(super) fn of_deep(&self) -> (usize, DType, bool) {
        (self.deep_channels, self.encoder.dtype(), self.encoder.is_channels_last())
    }
}

/// One look at latents.
pub(super) struct UnetOutput {
    /// (B, out, H, W), f32.
    pub(super) output: Tensor,
    /// What the outermost layer of the way up gets from below: (B, channels, H, W). None where nobody asks for it.
    pub(super) deep: Option<Tensor>,
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
            hidden = resnet.forward(&joined(&hidden, &skip)?, Some(&at_step.raised()?))?;
            if let Some(attention) = self.attentions.get(layer) {
                hidden = attention.forward(&hidden, at_step)?;
            }
        }
        Ok(hidden)
    }
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
            let text = Text { added, ..Text::of_states(draw(&[2, 7, config.cross_attention_dim])) };
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
