//! How a flow's transformer is told the time: sinusoids at falling frequencies.

/// Sinusoids that a time is turned into.
pub(super) const TIME_FREQUENCIES: usize = 256;

const MAX_PERIOD: f32 = 10_000.0;

/// Cosines, then sines, of `time`.
pub(super) fn sinusoids(time: f32) -> Vec<f32> {
    let half = TIME_FREQUENCIES / 2;
    let angle = |index: usize| time * (-MAX_PERIOD.ln() * index as f32 / half as f32).exp();
    (0..half).map(|index| angle(index).cos()).chain((0..half).map(|index| angle(index).sin())).collect()
}
