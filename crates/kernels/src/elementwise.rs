//! What is done to every number, or to its place: gates, activations, sums, transpositions.

use rayon::prelude::*;

use crate::vectors::{Rounding, exp, vectorised};

/// What opens a gate of a gated linear unit (Shazeer 2020, "GLU Variants Improve Transformer").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// x·Φ(x), exactly (Hendrycks and Gimpel 2016): GEGLU.
    Gelu,
    /// The same by tanh, as T5 has it.
    GeluTanh,
    /// x·sigmoid(x): `SwiGLU`.
    Silu,
}

/// `input`: (T, 2·width), values before gates. Returns value·gelu(gate): (T, width).
#[must_use]
pub fn geglu(input: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; input.len() / 2];
    out.par_chunks_mut(width).zip(input.par_chunks(2 * width)).for_each(|(out, input)| {
        let (values, gates) = input.split_at(width);
        vectorised!(|rounding| {
            out.iter_mut().zip(values).zip(gates).for_each(|((out, value), gate)| *out = value * gelu(*gate, rounding));
        });
    });
    out
}

/// silu(gate)·value of as many of both.
#[must_use]
pub fn swiglu(gates: &[f32], values: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gates.len()];
    let parts = out.par_chunks_mut(CHUNK).zip(gates.par_chunks(CHUNK)).zip(values.par_chunks(CHUNK));
    parts.for_each(|((out, gates), values)| {
        vectorised!(|rounding| {
            let all = out.iter_mut().zip(gates).zip(values);
            all.for_each(|((out, gate), value)| *out = gate / (1.0 + exp(-gate, rounding)) * value);
        });
    });
    out
}

/// Values of a task.
const CHUNK: usize = 1 << 14;

/// x·sigmoid(1.702·x), CLIP's "quick gelu", in place.
pub fn quick_gelu(values: &mut [f32]) {
    each(values, |x, rounding| x / (1.0 + exp(-1.702 * x, rounding)));
}

/// x·sigmoid(x), in place.
pub fn silu(values: &mut [f32]) {
    each(values, |x, rounding| x / (1.0 + exp(-x, rounding)));
}

#[inline(always)]
fn each(values: &mut [f32], function: impl Fn(f32, Rounding) -> f32 + Sync) {
    values.par_chunks_mut(CHUNK).for_each(|values| {
        vectorised!(|rounding| values.iter_mut().for_each(|number| *number = function(*number, rounding)));
    });
}

/// `input`: (B, rows, columns). Returns (B, columns, rows).
#[must_use]
pub fn transpose(input: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let mut out = vec![0.0; input.len()];
    let blocks = columns.div_ceil(BLOCK);
    let matrices = out.par_chunks_mut(rows * columns).zip(input.par_chunks(rows * columns));
    matrices.for_each(|(out, input)| {
        out.par_chunks_mut(BLOCK * rows).zip(0..blocks).for_each(|(out, block)| {
            for start in (0..rows).step_by(BLOCK) {
                for row in start..rows.min(start + BLOCK) {
                    for (index, number) in input[row * columns..][..columns].iter().skip(block * BLOCK).take(BLOCK).enumerate()
                    {
                        out[index * rows + row] = *number;
                    }
                }
            }
        });
    });
    out
}

/// x·Φ(x), with the error function of Abramowitz and Stegun 7.1.26 (off by at most 1.5e-7).
#[inline(always)]
fn gelu(x: f32, rounding: Rounding) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * p * exp(-z * z, rounding);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}
