//! What the transformer gets of time, for each timestep of a schedule, worked out ahead.
//!
//! A third of the model's weights turn a timestep into shifts, scales and gates, and nothing else goes into them. They are read once a
//! schedule, layer by layer, and none of them stays on the device.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::config::TransformerConfig;
use super::files::TransformerFiles;
use super::layout::{MODULATIONS, TIME_FREQUENCIES};
use super::linear::Linear;
use crate::EngineError;
use crate::recent::Recent;

const MAX_PERIOD: f32 = 10_000.0;
/// Timesteps are reported as parts of 1 and looked at in thousandths.
const TIME_SCALE: f32 = 1000.0;

/// Shift, 1 + scale and gate of one part of a block: each (width,).
#[derive(Clone)]
pub(super) struct Modulation {
    pub(super) shift: Tensor,
    pub(super) scale: Tensor,
    pub(super) gate: Tensor,
}

/// Before attention, and before the feed-forward layer.
pub(super) type Modulations = [Modulation; 2];

/// How one block is modulated at one timestep.
#[derive(Clone)]
pub(super) struct BlockModulation {
    /// Of the output's tokens.
    pub(super) output: Modulations,
    /// Of the references' tokens: as of timestep 0 where the model has `zero_cond_t`, else as the output's.
    pub(super) references: Modulations,
    pub(super) text: Modulations,
}

/// All that the transformer gets at one timestep.
pub struct TimestepConditioning {
    /// One a block.
    pub(super) blocks: Vec<BlockModulation>,
    /// Of the last norm.
    pub(super) last_shift: Tensor,
    pub(super) last_scale: Tensor,
}

/// The conditionings of the schedules that were used last.
pub(super) struct ConditioningCache(Recent<Vec<u32>, Arc<Vec<TimestepConditioning>>>);

impl Default for ConditioningCache {
    fn default() -> Self {
        // The schedule that is in use is kept, however long it is.
        Self(Recent::new(Self::MAX_TIMESTEPS, |timesteps, _| timesteps.len().min(Self::MAX_TIMESTEPS)))
    }
}

impl ConditioningCache {
    /// Timesteps that are remembered: 4.4 MB each in bf16 at full size.
    const MAX_TIMESTEPS: usize = 128;

    /// The conditionings of these timesteps, worked out where they are not among the last used.
    pub(super) fn of(
        &mut self,
        timesteps: &[f32],
        config: &TransformerConfig,
        files: &TransformerFiles,
    ) -> std::result::Result<Arc<Vec<TimestepConditioning>>, EngineError> {
        let key = timesteps.iter().map(|timestep| timestep.to_bits()).collect();
        self.0.of(key, || work_out(timesteps, config, files).map(Arc::new))
    }
}

/// `timesteps`: 0 to 1000, as the schedule has them.
fn work_out(
    timesteps: &[f32],
    config: &TransformerConfig,
    files: &TransformerFiles,
) -> std::result::Result<Vec<TimestepConditioning>, EngineError> {
    let (compute, device) = files.kept();
    let mut times: Vec<f32> = timesteps.iter().map(|timestep| rounded_timestep(*timestep, compute)).collect();
    if config.zero_cond_t {
        times.push(0.0);
    }
    let embedded = embed(&times, files)?;
    let ones = ones_at_scales(config.width(), compute, &device)?;
    let mut conditionings: Vec<Vec<BlockModulation>> = vec![Vec::with_capacity(config.num_layers); timesteps.len()];
    for block in 0..config.num_layers {
        let image = modulations(&files.linear(&format!("transformer_blocks.{block}.img_mod.1"))?, &embedded, &ones)?;
        let text = modulations(&files.linear(&format!("transformer_blocks.{block}.txt_mod.1"))?, &embedded, &ones)?;
        for (index, conditioning) in conditionings.iter_mut().enumerate() {
            let references = if config.zero_cond_t { &image[timesteps.len()] } else { &image[index] };
            conditioning.push(BlockModulation {
                output: image[index].clone(),
                references: references.clone(),
                text: text[index].clone(),
            });
        }
    }
    let last = files.linear("norm_out.linear")?;
    let mut rows = Vec::with_capacity(timesteps.len());
    for (blocks, embedded) in conditionings.into_iter().zip(&embedded) {
        // Scale before shift here, after it in the blocks.
        let row = last.forward(embedded)?.flatten_all()?;
        let part = |index: usize| row.narrow(0, index * config.width(), config.width());
        rows.push(TimestepConditioning { blocks, last_scale: (part(0)? + 1.0)?, last_shift: part(1)? });
    }
    Ok(rows)
}

/// A timestep of 0 to 1000 as the model gets it: rounded to what is computed in, divided by 1000, rounded again.
fn rounded_timestep(timestep: f32, compute: DType) -> f32 {
    rounded(rounded(timestep, compute) / TIME_SCALE, compute)
}

/// The nearest number in the format that is computed in; `number` is finite.
pub(crate) fn rounded(number: f32, compute: DType) -> f32 {
    match compute {
        DType::BF16 => nearest_bf16(number),
        _ => number,
    }
}

/// The nearest number that has only the upper 16 bits, the even one of two; `number` is finite.
fn nearest_bf16(number: f32) -> f32 {
    let bits = number.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// silu of the embedding of each time, (1, 1, width) each: one by one, so that a row is the same values whatever its neighbours are.
fn embed(times: &[f32], files: &TransformerFiles) -> std::result::Result<Vec<Tensor>, EngineError> {
    let (compute, device) = files.kept();
    let first = files.linear("time_text_embed.timestep_embedder.linear_1")?;
    let second = files.linear("time_text_embed.timestep_embedder.linear_2")?;
    let embedded_times = times.iter().map(|time| {
        let waves = Tensor::from_vec(sinusoids(*time), (1, 1, TIME_FREQUENCIES), &device)?.to_dtype(compute)?;
        second.forward(&first.forward(&waves)?.silu()?)?.silu()
    });
    Ok(embedded_times.collect::<Result<_>>()?)
}

/// Cosines, then sines, of 1000 times `time` at falling frequencies.
fn sinusoids(time: f32) -> Vec<f32> {
    let half = TIME_FREQUENCIES / 2;
    let angle = |index: usize| TIME_SCALE * (time * (-MAX_PERIOD.ln() * index as f32 / half as f32).exp());
    (0..half).map(|index| angle(index).cos()).chain((0..half).map(|index| angle(index).sin())).collect()
}

/// Shift, 1 + scale, gate, twice, for each row.
fn modulations(linear: &Linear, embedded: &[Tensor], ones: &Tensor) -> Result<Vec<Modulations>> {
    let rows = embedded.iter().map(|embedded| {
        let row = (linear.forward(embedded)?.flatten_all()? + ones)?;
        let parts = row.chunk(MODULATIONS, D::Minus1)?;
        let of = |first: usize| Modulation {
            shift: parts[first].clone(),
            scale: parts[first + 1].clone(),
            gate: parts[first + 2].clone(),
        };
        Ok([of(0), of(MODULATIONS / 2)])
    });
    rows.collect()
}

/// (6·width,): 1 where the scales of shift, scale, gate, … are.
fn ones_at_scales(width: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let ones = (0..MODULATIONS).flat_map(|index| vec![if index % 3 == 1 { 1.0_f32 } else { 0.0 }; width]);
    Tensor::from_vec(ones.collect::<Vec<f32>>(), MODULATIONS * width, device)?.to_dtype(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_as_the_format_that_is_computed_in() {
        // 761.1 in bf16 is 760; a thousandth of that rounds once more.
        assert_eq!(rounded_timestep(761.1, DType::BF16).to_bits(), 0.761_718_75_f32.to_bits());
        assert_eq!(rounded_timestep(761.1, DType::F32).to_bits(), (761.1_f32 / 1000.0).to_bits());
        assert_eq!((nearest_bf16(1.0 + 1.0 / 256.0), nearest_bf16(1.0 + 3.0 / 256.0)), (1.0, 1.0 + 4.0 / 256.0));
    }
}
