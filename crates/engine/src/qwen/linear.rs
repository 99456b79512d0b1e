//! A linear layer with whole or 8-bit weights, and with LoRA matrices next to them where they cannot be merged.

use candle_core::{Result, Tensor};

use crate::fp8::{Fp8Weight, forward_whole};
use crate::layers;

/// A layer over the last dimension of (1, T, in).
pub(super) struct Linear {
    weight: Weight,
    /// Down (rank, in) and up (out, rank) matrices; alpha and scale are in the latter.
    low_rank: Option<(Tensor, Tensor)>,
}

enum Weight {
    Whole(layers::Linear),
    /// e4m3 values, multiplied as they are where the device does that, else made whole while they are used.
    Fp8Weight {
        /// (out, in).
        bits: Tensor,
        /// What the products are multiplied by: (out,) or (1,), f32.
        scale: Tensor,
        /// (out,).
        bias: Tensor,
        fp8: Option<Fp8Weight>,
    },
}

impl Linear {
    pub(super) fn full_precision(weight: Tensor, bias: Tensor) -> Self {
        Self { weight: Weight::Whole(layers::Linear::of(weight, Some(bias))), low_rank: None }
    }

    /// `bits`, `scale` and `bias` of the weight; `beside`: down and up matrices.
    pub(super) fn fp8(
        (bits, scale, bias): (Tensor, Tensor, Tensor),
        low_rank: Option<(Tensor, Tensor)>,
        fp8: Option<Fp8Weight>,
    ) -> Self {
        Self { weight: Weight::Fp8Weight { bits, scale, bias, fp8 }, low_rank }
    }

    /// `input`: (1, T, in). Returns (1, T, out), in the same format.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor> {
        let output = match &self.weight {
            Weight::Whole(linear) => linear.forward(input)?,
            Weight::Fp8Weight { bits, scale, bias, fp8 } => {
                let tokens = input.squeeze(0)?;
                let output = match fp8 {
                    Some(fp8) => fp8.forward(&tokens, bits, scale, bias)?,
                    None => forward_whole(&tokens, bits, scale, bias)?,
                };
                output.unsqueeze(0)?
            }
        };
        let Some((down, up)) = &self.low_rank else { return Ok(output) };
        let lower = layers::Linear::of(down.clone(), None).forward(input)?;
        output + layers::Linear::of(up.clone(), None).forward(&lower)?
    }
}
