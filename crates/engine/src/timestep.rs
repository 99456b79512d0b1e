//! How a flow's transformer is told the time: a timestep as diffusers' pipelines round it, and sinusoids at falling frequencies.

use candle_core::DType;

/// Sinusoids that a time is turned into.
pub(crate) const TIME_FREQUENCIES: usize = 256;
/// What a schedule calls the whole of time: timesteps are reported as parts of 1 and looked at in thousandths.
pub(crate) const TRAIN_TIMESTEPS: f32 = 1000.0;

const MAX_PERIOD: f32 = 10_000.0;

/// A timestep of 0 to 1000 as a part of 1: rounded to what is computed in, divided by 1000, rounded again.
pub(crate) fn rounded_timestep(timestep: f32, compute: DType) -> f32 {
    rounded(rounded(timestep, compute) / TRAIN_TIMESTEPS, compute)
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

/// Cosines, then sines, of `scale` times `time` at falling frequencies; in this order of products, by which they are rounded.
pub(crate) fn sinusoids(time: f32, scale: f32) -> Vec<f32> {
    let half = TIME_FREQUENCIES / 2;
    let angle = |index: usize| scale * (time * (-MAX_PERIOD.ln() * index as f32 / half as f32).exp());
    (0..half).map(|index| angle(index).cos()).chain((0..half).map(|index| angle(index).sin())).collect()
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
