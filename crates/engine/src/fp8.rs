//! Products with 8-bit weights on a GPU that has them: the input is rounded to 8 bits as well, each token by a scale of its own.
//!
//! As `LightX2V`'s fp8 linear layers do it (`lightx2v/common/ops/mm/mm_weight.py`, class `MMWeightWfp8channelAfp8channeldynamicSgl`).

use std::sync::Arc;

use candle_core::{D, DType, Device, Error, Result, Tensor};

use super::device::{Fp8Product, fp8_product};

/// The largest e4m3 number.
const LARGEST: f64 = 448.0;
/// What a token's scale is at least: one of zeros stays one of zeros.
const LEAST_SCALE: f64 = 1e-12;

/// The products of one device.
#[derive(Clone)]
pub(super) struct Fp8Weight {
    gemm: Arc<Fp8Product>,
}

impl Fp8Weight {
    /// `None` where the device has none, or its results are not what they should be: it was tried. The log says which.
    pub(super) fn of(device: &Device) -> Option<Self> {
        let tried = fp8_product(device)?.and_then(|product| {
            let fp8 = Self { gemm: product };
            fp8.tried(device).map(|()| fp8)
        });
        tried.inspect_err(|error| tracing::warn!(%error, "this GPU's 8-bit products are not used: weights are made whole")).ok()
    }

    /// A small product next to the same with whole values. With 3 bits behind the point each number is off by a sixteenth at most.
    fn tried(&self, device: &Device) -> Result<()> {
        const FURTHEST: f32 = 0.1;
        let draw = |rows: usize| Tensor::randn(0.0_f32, 1.0, (rows, 64), device);
        let input = draw(5)?;
        let weight = draw(32)?;
        let whole = input.matmul(&weight.t()?)?;
        let difference = (self.multiply(&input, &weight.to_dtype(DType::F8E4M3)?)? - &whole)?;
        let size = |tensor: &Tensor| tensor.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>();
        let off = size(&difference)? / size(&whole)?;
        if off <= FURTHEST { Ok(()) } else { Err(Error::msg(format!("off by {off} of what it should be"))) }
    }

    /// Whether weights (out, in) can be multiplied so.
    pub(super) fn fits(weight: &Tensor) -> bool {
        weight.dims().iter().all(|side| side.is_multiple_of(16))
    }

    /// `input`: (T, in), of any float; `weight`: (out, in), e4m3. Returns (T, out), f32, without the weight's scale.
    pub(super) fn multiply(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let input = input.to_dtype(DType::F32)?;
        let scale = (input.abs()?.max_keepdim(D::Minus1)? / LARGEST)?.maximum(LEAST_SCALE)?;
        let rounded = input.broadcast_div(&scale)?.to_dtype(DType::F8E4M3)?;
        (self.gemm)(&rounded, weight)?.to_dtype(DType::F32)?.broadcast_mul(&scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a GPU is asked for, in f32.
    fn full_precision(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        assert_eq!((input.dtype(), weight.dtype()), (DType::F8E4M3, DType::F8E4M3));
        input.to_dtype(DType::F32)?.matmul(&weight.to_dtype(DType::F32)?.t()?)?.to_dtype(DType::BF16)
    }

    #[test]
    fn every_token_is_rounded_by_its_own_scale() -> Result<()> {
        let fp8 = Fp8Weight { gemm: Arc::new(full_precision) };
        fp8.tried(&Device::Cpu)?;
        // Values that 8 bits hold exactly once each token's largest is 448: nothing may be lost but bf16's rounding.
        let tokens =
            [[448.0_f32, -224.0, 3.5, 0.0], [0.007, -0.0035, 0.000_437_5, 0.0], [0.0; 4], [4.48e6, 2.24e6, -1.12e6, 0.0]];
        let input = Tensor::new(&tokens, &Device::Cpu)?;
        let weight = Tensor::new(&[[1.0_f32, 0.5, 2.0, -4.0], [-2.0, 0.25, 8.0, 1.0]], &Device::Cpu)?;
        let ours = fp8.multiply(&input, &weight.to_dtype(DType::F8E4M3)?)?.to_vec2::<f32>()?;
        let exact = input.matmul(&weight.t()?)?.to_vec2::<f32>()?;
        for (ours, exact) in ours.concat().iter().zip(exact.concat()) {
            assert!((ours - exact).abs() <= exact.abs() / 256.0, "{ours} is not {exact}");
        }
        Ok(())
    }

    #[test]
    fn a_device_that_multiplies_wrongly_is_not_used() {
        let wrong = Fp8Weight { gemm: Arc::new(|input, weight| full_precision(input, weight)? * 2.0) };
        assert!(wrong.tried(&Device::Cpu).is_err());
        assert!(Fp8Weight::of(&Device::Cpu).is_none(), "a CPU has none");
    }
}
