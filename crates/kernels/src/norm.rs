//! Group normalisation, with the silu that follows it where one does, layer normalisation, and that of each place's channels.

use rayon::prelude::*;

use crate::shared::Shared;
use crate::vectors::{exp, vectorised};

/// What a group norm has learned, and its settings.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    /// (channels).
    pub weight: &'a [f32],
    /// (channels).
    pub bias: &'a [f32],
    pub groups: usize,
    pub eps: f32,
    /// Whether x·sigmoid(x) of the result is returned.
    pub silu: bool,
}

impl GroupNorm<'_> {
    /// `input`: (B, channels, places), `places` in each channel. Returns the same shape.
    #[must_use]
    pub fn run(&self, input: &[f32], places: usize) -> Vec<f32> {
        let channels = self.weight.len() / self.groups;
        let length = channels * places;
        let mut out = vec![0.0; input.len()];
        out.par_chunks_mut(length).zip(input.par_chunks(length)).enumerate().for_each(|(index, (out, input))| {
            let first = index % self.groups * channels;
            let (mean, variance) = moments(input);
            let centre = mean as f32;
            let scale = (variance + f64::from(self.eps)).sqrt().recip() as f32;
            for (index, (out, input)) in out.chunks_exact_mut(places).zip(input.chunks_exact(places)).enumerate() {
                let factor = self.weight[first + index] * scale;
                let bias = self.bias[first + index] - centre * factor;
                vectorised!(|rounding| {
                    let affine = |x: f32| rounding.multiply_add(x, factor, bias);
                    if self.silu {
                        map(out, input, |x| {
                            let y = affine(x);
                            y / (1.0 + exp(-y, rounding))
                        });
                    } else {
                        map(out, input, affine);
                    }
                });
            }
        });
        out
    }
}

/// What a layer norm has learned, and its setting.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// (channels).
    pub weight: &'a [f32],
    /// (channels).
    pub bias: &'a [f32],
    pub eps: f32,
}

impl LayerNorm<'_> {
    /// `input`: (T, channels). Returns the same shape.
    #[must_use]
    pub fn run(&self, input: &[f32]) -> Vec<f32> {
        let channels = self.weight.len();
        let mut out = vec![0.0; input.len()];
        out.par_chunks_mut(channels).zip(input.par_chunks(channels)).with_min_len(16).for_each(|(out, input)| {
            let (mean, variance) = moments(input);
            let centre = mean as f32;
            let scale = (variance + f64::from(self.eps)).sqrt().recip() as f32;
            vectorised!(|rounding| {
                let learned = self.weight.iter().zip(self.bias);
                for ((out, x), (weight, bias)) in out.iter_mut().zip(input).zip(learned) {
                    *out = rounding.multiply_add((x - centre) * scale, *weight, *bias);
                }
            });
        });
        out
    }
}

/// A norm of each place's channels, with the silu that follows it where one does.
#[derive(Clone, Copy)]
pub struct ChannelNorm<'a> {
    /// (channels).
    pub gamma: &'a [f32],
    /// What a length is at least.
    pub eps: f32,
    /// Whether x·sigmoid(x) of the result is returned.
    pub silu: bool,
}

impl ChannelNorm<'_> {
    /// `input`: (B, channels, places). Returns the same shape: each place divided by the length of its channels, times gamma.
    #[must_use]
    pub fn run(&self, input: &[f32], places: usize) -> Vec<f32> {
        const BLOCK: usize = 512;
        let length = self.gamma.len() * places;
        let mut out = vec![0.0; input.len()];
        let shared = Shared::new(&mut out);
        let blocks = places.div_ceil(BLOCK);
        (0..input.len() / length * blocks).into_par_iter().for_each(|block| {
            let image = block / blocks * length;
            let first = block % blocks * BLOCK;
            let count = BLOCK.min(places - first);
            let row = |channel: usize| image + channel * places + first;
            vectorised!(|rounding| {
                let mut factors = [0.0_f32; BLOCK];
                for channel in 0..self.gamma.len() {
                    for (sum, x) in factors.iter_mut().zip(&input[row(channel)..][..count]) {
                        *sum = rounding.multiply_add(*x, *x, *sum);
                    }
                }
                for sum in &mut factors {
                    *sum = 1.0 / sum.sqrt().max(self.eps);
                }
                for (channel, gamma) in self.gamma.iter().enumerate() {
                    let values = input[row(channel)..][..count].iter().zip(&factors);
                    shared.with(row(channel), count, |out| {
                        for (out, (x, factor)) in out.iter_mut().zip(values) {
                            let y = x * factor * gamma;
                            *out = if self.silu { y / (1.0 + exp(-y, rounding)) } else { y };
                        }
                    });
                }
            });
        });
        out
    }
}

#[inline(always)]
fn map(out: &mut [f32], input: &[f32], function: impl Fn(f32) -> f32) {
    out.iter_mut().zip(input).for_each(|(out, input)| *out = function(*input));
}

/// Mean and variance: of chunks that stay in the first-level cache, joined as Chan, Golub and `LeVeque` 1979 do.
fn moments(values: &[f32]) -> (f64, f64) {
    const CHUNK: usize = 4096;
    let mut count = 0.0;
    let mut mean = 0.0;
    let mut squares = 0.0;
    for chunk in values.chunks(CHUNK) {
        let here = chunk.len() as f64;
        let (centre, around) = vectorised!(|_| {
            let centre = sum(chunk, |x| x) / here;
            (centre, sum(chunk, |x| (x - centre as f32) * (x - centre as f32)))
        });
        let apart = centre - mean;
        let all = count + here;
        squares += around + apart * apart * count * here / all;
        mean += apart * here / all;
        count = all;
    }
    (mean, squares / count)
}

/// In 32 sums of up to 128 values each, these summed in f64.
#[inline(always)]
fn sum(values: &[f32], function: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 32;
    let mut total = 0.0;
    for chunk in values.chunks(128 * LANES) {
        let mut sums = [0.0_f32; LANES];
        let whole = chunk.chunks_exact(LANES);
        let rest = whole.remainder();
        for values in whole {
            for lane in 0..LANES {
                sums[lane] += function(values[lane]);
            }
        }
        total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        total += rest.iter().map(|number| f64::from(function(*number))).sum::<f64>();
    }
    total
}
