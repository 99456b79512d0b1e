//! Products with 8-bit weights on a GPU that has them: the input is rounded to 8 bits as well, each token by a scale of its own.
//!
//! As `LightX2V`'s fp8 linear layers do it (`lightx2v/common/ops/mm/mm_weight.py`, class `MMWeightWfp8channelAfp8channeldynamicSgl`).

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::device::{Fp8Device, fp8_device, widened};

/// The products of one device.
#[derive(Clone)]
pub(super) struct Fp8Weight {
    device: Arc<dyn Fp8Device>,
}

impl Fp8Weight {
    /// `None` where the device has none, or its results are not what they should be: it was tried. The log says which.
    pub(super) fn of(device: &Device) -> Option<Self> {
        let tried = fp8_device(device)?.and_then(|fp8| {
            let fp8 = Self { device: fp8 };
            fp8.tried(device).map(|()| fp8)
        });
        tried.inspect_err(|error| tracing::warn!(%error, "this GPU's 8-bit products are not used: weights are made whole")).ok()
    }

    /// A small product next to the same with whole values. With 3 bits behind the point each number is off by a sixteenth at most.
    fn tried(&self, device: &Device) -> Result<()> {
        const FURTHEST: f32 = 0.1;
        let draw = |rows: usize| Tensor::randn(0.0_f32, 1.0, (rows, 64), &Device::Cpu);
        let input = draw(5)?;
        let weight = draw(32)?;
        let whole = input.matmul(&weight.t()?)?;
        let bits = weight.to_dtype(DType::F8E4M3)?.to_device(device)?;
        let scale = Tensor::ones(1, DType::F32, device)?;
        let bias = Tensor::zeros(32, DType::F32, device)?;
        let output = self.forward(&input.to_device(device)?, &bits, &scale, &bias)?.to_device(&Device::Cpu)?;
        let size = |tensor: &Tensor| tensor.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>();
        let off = size(&(output - &whole)?)? / size(&whole)?;
        if off <= FURTHEST { Ok(()) } else { Err(Error::msg(format!("off by {off} of what it should be"))) }
    }

    /// Whether weights (out, in) can be multiplied so.
    pub(super) fn fits(weight: &Tensor) -> bool {
        weight.dims().iter().all(|side| side.is_multiple_of(16))
    }

    /// `input`: (T, in), f32, f16 or bf16; `bits`: (out, in), e4m3, to be multiplied by `scale`, (1,) or (out,), f32; `bias`: (out,), in the
    /// input's format. Returns (T, out), in the input's format.
    pub(super) fn forward(&self, input: &Tensor, bits: &Tensor, scale: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (rounded, token_scales) = self.device.round_tokens(input)?;
        let product = self.device.multiply(&rounded, bits)?;
        self.device.finish(&product, &token_scales, scale, bias)
    }
}

/// The same without such products: the weights are made whole while they are used.
pub(super) fn forward_whole(input: &Tensor, bits: &Tensor, scale: &Tensor, bias: &Tensor) -> Result<Tensor> {
    // The values themselves are exact in every wider format; the scale comes after the product, which is smaller, and rounds once.
    let product = input.matmul(&widened(bits, input.dtype())?.t()?)?;
    product.to_dtype(DType::F32)?.broadcast_mul(scale)?.to_dtype(input.dtype())?.broadcast_add(bias)
}

/// What a GPU is asked for, by candle's operations on a CPU; products are multiplied by `factor`.
#[cfg(test)]
pub(super) struct Twin {
    pub(super) factor: f64,
}

#[cfg(test)]
impl Fp8Device for Twin {
    fn round_tokens(&self, input: &Tensor) -> Result<(Tensor, Tensor)> {
        let input = input.to_dtype(DType::F32)?;
        // A quotient: candle would multiply by 1/448, which rounds twice.
        let scale = input
            .abs()?
            .max_keepdim(candle_core::D::Minus1)?
            .broadcast_div(&Tensor::new(448.0_f32, &Device::Cpu)?)?
            .maximum(1e-12)?;
        Ok((input.broadcast_div(&scale)?.to_dtype(DType::F8E4M3)?, scale.squeeze(1)?))
    }

    fn multiply(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        assert_eq!((input.dtype(), weight.dtype()), (DType::F8E4M3, DType::F8E4M3));
        let product = input.to_dtype(DType::F32)?.matmul(&weight.to_dtype(DType::F32)?.t()?)?;
        (product * self.factor)?.to_dtype(DType::BF16)
    }

    fn finish(&self, product: &Tensor, token_scales: &Tensor, weight_scales: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let scaled = product.to_dtype(DType::F32)?.broadcast_mul(&token_scales.unsqueeze(1)?)?;
        scaled.broadcast_mul(weight_scales)?.to_dtype(bias.dtype())?.broadcast_add(bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_rounded_by_its_own_scale() -> Result<()> {
        let fp8 = Fp8Weight { device: Arc::new(Twin { factor: 1.0 }) };
        fp8.tried(&Device::Cpu)?;
        // Values that 8 bits hold exactly once each token's largest is 448: nothing may be lost but bf16's rounding.
        let tokens =
            [[448.0_f32, -224.0, 3.5, 0.0], [0.007, -0.0035, 0.000_437_5, 0.0], [0.0; 4], [4.48e6, 2.24e6, -1.12e6, 0.0]];
        let input = Tensor::new(&tokens, &Device::Cpu)?;
        let weight = Tensor::new(&[[1.0_f32, 0.5, 2.0, -4.0], [-2.0, 0.25, 8.0, 1.0]], &Device::Cpu)?;
        let scale = Tensor::new(&[0.5_f32, 2.0], &Device::Cpu)?;
        let bits = weight.to_dtype(DType::F8E4M3)?;
        let none = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
        let ours = fp8.forward(&input, &bits, &scale, &none)?.to_vec2::<f32>()?;
        let exact = input.matmul(&weight.t()?)?.broadcast_mul(&scale)?;
        for (ours, exact) in ours.concat().iter().zip(exact.to_vec2::<f32>()?.concat()) {
            assert!((ours - exact).abs() <= exact.abs() / 256.0, "{ours} is not {exact}");
        }
        let bias = Tensor::new(&[3.0_f32, -1.0], &Device::Cpu)?;
        let whole = forward_whole(&input, &bits, &scale, &bias)?.to_vec2::<f32>()?;
        assert_eq!(whole, exact.broadcast_add(&bias)?.to_vec2::<f32>()?);
        Ok(())
    }

    #[test]
    fn a_device_that_multiplies_wrongly_is_not_used() {
        assert!(Fp8Weight { device: Arc::new(Twin { factor: 2.0 }) }.tried(&Device::Cpu).is_err());
        assert!(Fp8Weight::of(&Device::Cpu).is_none(), "a CPU has none");
    }
}
