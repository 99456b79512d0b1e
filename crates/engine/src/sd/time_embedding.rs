//! How noisy the latents are, as what every residual block of the UNet is told; with it guidance scale, pooled text and sizes where a model looks at
//! them.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::conditioning::Text;
use super::config::UnetConfig;
use crate::layers::{Linear, linear};

/// Longest period of the waves that a number is written as.
const MAX_PERIOD: f32 = 10_000.0;

pub(super) fn time_channels(config: &UnetConfig) -> usize {
    4 * config.block_out_channels[0]
}

/// Numbers as waves of falling frequency: diffusers' `Timesteps`.
pub(super) struct Waves {
    /// (1, width/2), f32.
    frequencies: Tensor,
    cosine_first: bool,
}

impl Waves {
    /// Waves of width `width` as `config` has them.
    pub(super) fn new(config: &UnetConfig, width: usize, device: &Device) -> Result<Self> {
        Self::falling(width / 2, config.freq_shift, config.flip_sin_to_cos, device)
    }

    fn falling(half: usize, shift: f64, cosine_first: bool, device: &Device) -> Result<Self> {
        let frequencies: Vec<f32> =
            (0..half).map(|index| (-MAX_PERIOD.ln() * index as f32 / (half as f32 - shift as f32)).exp()).collect();
        Ok(Self { frequencies: Tensor::from_vec(frequencies, (1, half), device)?, cosine_first })
    }

    /// (numbers, width), f32.
    pub(super) fn of(&self, numbers: &[f64]) -> Result<Tensor> {
        let numbers: Vec<f32> = numbers.iter().map(|number| *number as f32).collect();
        let numbers = Tensor::from_vec(numbers.clone(), (numbers.len(), 1), self.frequencies.device())?;
        let angles = numbers.broadcast_mul(&self.frequencies)?;
        let cosine = angles.cos()?;
        let sine = angles.sin()?;
        Tensor::cat(&if self.cosine_first { [cosine, sine] } else { [sine, cosine] }, 1)
    }
}

/// diffusers' `Timesteps` and `TimestepEmbedding`, and what else is added to them.
pub(super) struct TimeEmbedding {
    waves: Waves,
    guidance: Option<GuidanceEmbedding>,
    layers: [Linear; 2],
    /// SDXL's `add_embedding`.
    added: Option<[Linear; 2]>,
}

impl TimeEmbedding {
    pub(super) fn new(config: &UnetConfig, vb: &VarBuilder) -> Result<Self> {
        let channels = config.block_out_channels[0];
        let added = config.projection_class_embeddings_input_dim.filter(|_| config.is_xl());
        Ok(Self {
            waves: Waves::new(config, channels, vb.device())?,
            guidance: GuidanceEmbedding::new(config, &vb.pp("time_embedding"))?,
            layers: two_layers(channels, time_channels(config), &vb.pp("time_embedding"))?,
            added: added.map(|width| two_layers(width, time_channels(config), &vb.pp("add_embedding"))).transpose()?,
        })
    }

    /// (timesteps, R, time channels), after the silu with which every residual block begins. R is 1, or the B images of `text` where each
    /// has pooled text and sizes of its own.
    pub(super) fn forward(&self, text: &Text, timesteps: &[f64], guidance_scale: f64, dtype: DType) -> Result<Tensor> {
        let mut waves = self.waves.of(timesteps)?.to_dtype(dtype)?;
        if let Some(guidance) = &self.guidance {
            waves = waves.broadcast_add(&guidance.forward(guidance_scale, dtype)?)?;
        }
        let embedding = embedded(&self.layers, &waves)?.unsqueeze(1)?;
        let embedding = match (&self.added, &text.added) {
            (None, _) => embedding,
            (Some(layers), Some(added)) => embedded(layers, &added.to_dtype(dtype)?)?.broadcast_add(&embedding)?,
            (Some(_), None) => candle_core::bail!("the UNet looks at pooled text and sizes, and there are none"),
        };
        embedding.silu()
    }
}

fn two_layers(width: usize, channels: usize, vb: &VarBuilder) -> Result<[Linear; 2]> {
    Ok([linear(width, channels, vb.pp("linear_1"))?, linear(channels, channels, vb.pp("linear_2"))?])
}

fn embedded([first, second]: &[Linear; 2], input: &Tensor) -> Result<Tensor> {
    second.forward(&first.forward(input)?.silu()?)
}

/// The guidance scale as a number of a distilled model's input: `get_guidance_scale_embedding` of diffusers' pipelines, and `cond_proj`.
struct GuidanceEmbedding {
    waves: Waves,
    projection: Tensor,
    is_odd: bool,
}

impl GuidanceEmbedding {
    /// `vb` stands at `time_embedding`; nothing where the model has none.
    fn new(config: &UnetConfig, vb: &VarBuilder) -> Result<Option<Self>> {
        let Some(width) = config.time_cond_proj_dim else { return Ok(None) };
        Ok(Some(Self {
            waves: Waves::falling(width / 2, 1.0, false, vb.device())?,
            projection: vb.get((config.block_out_channels[0], width), "cond_proj.weight")?,
            is_odd: width % 2 == 1,
        }))
    }

    /// (1, channels).
    fn forward(&self, guidance_scale: f64, dtype: DType) -> Result<Tensor> {
        // Distilled with a scale that is 0 without guidance.
        const THOUSANDTHS: f64 = 1000.0;
        let mut embedding = self.waves.of(&[(guidance_scale - 1.0) * THOUSANDTHS])?;
        if self.is_odd {
            embedding = embedding.pad_with_zeros(1, 0, 1)?;
        }
        embedding.to_dtype(dtype)?.matmul(&self.projection.t()?)
    }
}
