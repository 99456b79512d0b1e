//! `DoRA` (Liu et al. 2024, arXiv 2402.09353): the weight's directions and its lengths are adapted apart.

use candle_core::{Result, Tensor};

/// What divides by a length must not divide by zero: the f32 epsilon, as `LyCORIS` adds it.
const EPSILON: f64 = f32::EPSILON as f64;

/// The lengths that were learnt, and whose rules they were learnt under. They differ at other scales than 1.
pub(super) struct Direction {
    lengths: Tensor,
    rules: Rules,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// `W' = m/‖W + s·Δ‖·(W + s·Δ)`, a length an output: `DoraLinearLayer` in PEFT's `tuners/lora/dora.py`.
    Peft,
    /// `V = W + Δ`, `W' = V·(s·(m/‖V‖ − 1) + 1)`, a length an output, or an input: `weight_decompose` in `LyCORIS`'s `functional/general.py`.
    Lycoris { along_outputs: bool },
}

impl Direction {
    /// `magnitude`: (out,), or (1, out, 1, 1) of a convolution. The error is a shape that does not fit `weight`.
    pub(super) fn peft(magnitude: Tensor, weight: &[usize]) -> std::result::Result<Self, Vec<usize>> {
        if weight.first() != Some(&magnitude.elem_count()) {
            return Err(magnitude.dims().to_vec());
        }
        Ok(Self { lengths: magnitude, rules: Rules::Peft })
    }

    /// `scale`: (out, 1, …) or (1, in, …). The error is a shape that does not fit `weight`.
    pub(super) fn lycoris(scale: Tensor, weight: &[usize]) -> std::result::Result<Self, Vec<usize>> {
        let count = scale.elem_count();
        let first = scale.dims().first().copied();
        let along_outputs = match weight {
            [out, ..] if count == *out && first == Some(*out) => true,
            [_, input, ..] if count == *input && first == Some(1) => false,
            _ => return Err(scale.dims().to_vec()),
        };
        Ok(Self { lengths: scale, rules: Rules::Lycoris { along_outputs } })
    }

    /// The adapted weight. `delta`: the change at scale 1.
    pub(super) fn merge(&self, weight: &Tensor, delta: &Tensor, scale: f64) -> Result<Tensor> {
        match self.rules {
            Rules::Peft => {
                let turned = (weight + (delta * scale)?)?;
                let factors = self.along(0, &turned)?.div(&lengths(&turned, 0)?)?;
                turned.broadcast_mul(&factors)
            }
            Rules::Lycoris { along_outputs } => {
                let turned = (weight + delta)?;
                let axis = usize::from(!along_outputs);
                let factors = self.along(axis, &turned)?.div(&(lengths(&turned, axis)? + EPSILON)?)?;
                turned.broadcast_mul(&((factors - 1.0)? * scale)?.affine(1.0, 1.0)?)
            }
        }
    }

    /// The learnt lengths, shaped to be multiplied with `weight`.
    fn along(&self, axis: usize, weight: &Tensor) -> Result<Tensor> {
        let mut shape = vec![1; weight.rank()];
        shape[axis] = self.lengths.elem_count();
        self.lengths.reshape(shape)
    }
}

/// The Euclidean length of everything that shares an index of `axis`, 1 in all other dimensions.
fn lengths(weight: &Tensor, axis: usize) -> Result<Tensor> {
    let others: Vec<usize> = (0..weight.rank()).filter(|other| *other != axis).collect();
    weight.sqr()?.sum_keepdim(others)?.sqrt()
}
