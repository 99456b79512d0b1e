//! What the transformer gets of time, for each timestep of a schedule, worked out ahead.
//!
//! A third of the model's weights turn a timestep into shifts, scales and gates, and nothing else goes into them. They are read once a
//! schedule, layer by layer, and none of them stays on the device.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor, bail};

use super::config::TransformerConfig;
use super::files::TransformerFiles;
use super::layout::MODULATIONS;
use super::linear::Linear;
use super::modulated::Modulation;
use crate::EngineError;
use crate::recent::Recent;
use crate::timestep::{TIME_FREQUENCIES, TRAIN_TIMESTEPS, rounded_timestep, sinusoids};

/// Before attention, and before the feed-forward layer.
pub(super) type Modulations = [Modulation; 2];

/// How one block is modulated at one timestep.
pub(super) struct BlockModulation {
    /// Of the output's tokens.
    pub(super) output: Modulations,
    /// Of the references' tokens: as of timestep 0 where the model has `zero_cond_t`, else as the output's.
    pub(super) references: Modulations,
    pub(super) text: Modulations,
}

/// All that the transformer gets at one timestep, one after the other in one tensor, or two: a step then has so many inputs, and not a thousand.
pub struct TimestepConditioning {
    /// Of each block a row (6·width,) for the image and one for the text; behind them 1 + scale and shift of the last norm.
    of_time: Tensor,
    /// A row of each block for the references, where the model has `zero_cond_t`: as of timestep 0.
    of_zero: Option<Tensor>,
    blocks: usize,
    width: usize,
}

impl TimestepConditioning {
    /// Of the block at this place.
    pub(super) fn block(&self, place: usize) -> Result<BlockModulation> {
        let row = MODULATIONS * self.width;
        let of_image = |from: &Tensor, first: usize| self.modulations(&from.narrow(0, first * row, row)?);
        Ok(BlockModulation {
            output: of_image(&self.of_time, 2 * place)?,
            references: match &self.of_zero {
                Some(of_zero) => of_image(of_zero, place)?,
                None => of_image(&self.of_time, 2 * place)?,
            },
            text: of_image(&self.of_time, 2 * place + 1)?,
        })
    }

    /// 1 + scale and shift of the last norm, (width,) each.
    pub(super) fn last(&self) -> Result<[Tensor; 2]> {
        let first = 2 * self.blocks * MODULATIONS * self.width;
        Ok([self.of_time.narrow(0, first, self.width)?, self.of_time.narrow(0, first + self.width, self.width)?])
    }

    /// All of its tensors, as many at each timestep.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [&self.of_time].into_iter().chain(&self.of_zero)
    }

    /// The same with other values, in the order of [`Self::tensors`].
    pub(super) fn with_tensors(&self, tensors: &[Tensor]) -> Result<Self> {
        let [of_time, of_zero @ ..] = tensors else { bail!("a timestep without what was worked out for it") };
        Ok(Self { of_time: of_time.clone(), of_zero: of_zero.first().cloned(), blocks: self.blocks, width: self.width })
    }

    /// Shift, 1 + scale, gate, twice, of a row.
    fn modulations(&self, row: &Tensor) -> Result<Modulations> {
        let part = |index: usize| row.narrow(0, index * self.width, self.width);
        let half =
            |first: usize| Ok::<_, Error>(Modulation { shift: part(first)?, scale: part(first + 1)?, gate: part(first + 2)? });
        Ok([half(0)?, half(MODULATIONS / 2)?])
    }
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
    // (6·width,) each: of the image and of the text, block by block, for each timestep; and of the image at timestep 0.
    let mut rows: Vec<Vec<Tensor>> = vec![Vec::with_capacity(2 * config.num_layers + 1); timesteps.len()];
    let mut of_zero: Vec<Tensor> = Vec::with_capacity(config.num_layers);
    for block in 0..config.num_layers {
        let image = modulations(&files.linear(&format!("transformer_blocks.{block}.img_mod.1"))?, &embedded, &ones)?;
        let text = modulations(&files.linear(&format!("transformer_blocks.{block}.txt_mod.1"))?, &embedded, &ones)?;
        of_zero.extend(image.get(timesteps.len()).cloned());
        for (rows, both) in rows.iter_mut().zip(image.into_iter().zip(text)) {
            rows.extend([both.0, both.1]);
        }
    }
    let of_zero = if of_zero.is_empty() { None } else { Some(Tensor::cat(&of_zero, 0)?) };
    let last = files.linear("norm_out.linear")?;
    let each = rows.into_iter().zip(&embedded).map(|(mut rows, embedded)| {
        // Scale before shift here, after it in the blocks.
        let row = last.forward(embedded)?.flatten_all()?;
        let part = |index: usize| row.narrow(0, index * config.width(), config.width());
        rows.extend([(part(0)? + 1.0)?, part(1)?]);
        let of_time = Tensor::cat(&rows, 0)?;
        Ok(TimestepConditioning { of_time, of_zero: of_zero.clone(), blocks: config.num_layers, width: config.width() })
    });
    Ok(each.collect::<Result<_>>()?)
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

/// Shift, 1 + scale, gate, twice, for each row: (6·width,).
fn modulations(linear: &Linear, embedded: &[Tensor], ones: &Tensor) -> Result<Vec<Tensor>> {
    embedded.iter().map(|embedded| linear.forward(embedded)?.flatten_all()? + ones).collect()
}

/// (6·width,): 1 where the scales of shift, scale, gate, … are.
fn ones_at_scales(width: usize, dtype: DType, device: &Device) -> Result<Tensor> {
    let ones = (0..MODULATIONS).flat_map(|index| vec![if index % 3 == 1 { 1.0_f32 } else { 0.0 }; width]);
    Tensor::from_vec(ones.collect::<Vec<f32>>(), MODULATIONS * width, device)?.to_dtype(dtype)
}
