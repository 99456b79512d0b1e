//! What the transformer gets of time, for each timestep of a schedule, worked out ahead.
//!
//! A third of the model's weights turn a timestep into shifts, scales and gates, and nothing else goes into them. They are read once a
//! schedule, layer by layer, and none of them stays on the device.

use std::sync::Arc;

use candle_core::{D, DType, Device, Result, Tensor};

use super::config::TransformerConfig;
use super::files::TransformerFiles;
use super::layout::MODULATIONS;
use super::linear::Linear;
use crate::EngineError;
use crate::recent::Recent;
use crate::timestep::{TIME_FREQUENCIES, TRAIN_TIMESTEPS, rounded_timestep, sinusoids};

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

/// silu of the embedding of each time, (1, 1, width) each: one by one, so that a row is the same values whatever its neighbours are.
fn embed(times: &[f32], files: &TransformerFiles) -> std::result::Result<Vec<Tensor>, EngineError> {
    let (compute, device) = files.kept();
    let first = files.linear("time_text_embed.timestep_embedder.linear_1")?;
    let second = files.linear("time_text_embed.timestep_embedder.linear_2")?;
    let embedded_times = times.iter().map(|time| {
        let waves =
            Tensor::from_vec(sinusoids(*time, TRAIN_TIMESTEPS), (1, 1, TIME_FREQUENCIES), &device)?.to_dtype(compute)?;
        second.forward(&first.forward(&waves)?.silu()?)?.silu()
    });
    Ok(embedded_times.collect::<Result<_>>()?)
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
