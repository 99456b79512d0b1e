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

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;

    /// What a GPU is asked for, by candle's operations on a CPU; products are multiplied by `factor`.
    struct Twin {
        factor: f64,
    }

    impl Fp8Device for Twin {
        fn round_tokens(&self, input: &Tensor) -> Result<(Tensor, Tensor)> {
            let input = input.to_dtype(DType::F32)?;
            // A quotient: candle would multiply by 1/448, which rounds twice.
            let scale =
                input.abs()?.max_keepdim(D::Minus1)?.broadcast_div(&Tensor::new(448.0_f32, &Device::Cpu)?)?.maximum(1e-12)?;
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
        #[cfg(not(feature = "cuda"))]
        assert!(Fp8Weight::of(&Device::Cpu).is_none(), "a CPU has none");
    }

    /// Ragged widths, a row of zeros, rows of other sizes, and values at e4m3's own borders.
    #[cfg(feature = "cuda")]
    fn drawn(tokens: usize, width: usize, dtype: DType) -> Result<Tensor> {
        let sizes: Vec<f32> =
            (0..tokens).map(|token| if token == 1 { 0.0 } else { 10.0_f32.powi(token as i32 % 5 - 3) }).collect();
        let sizes = Tensor::from_vec(sizes, (tokens, 1), &Device::Cpu)?;
        Tensor::randn(0.0_f32, 1.0, (tokens, width), &Device::Cpu)?.broadcast_mul(&sizes)?.to_dtype(dtype)
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_does_what_its_twin_does() -> Result<()> {
        let device = super::super::device::open().map_err(Error::wrap)?;
        let gpu = fp8_device(&device).expect("a GPU has 8-bit values")?;
        let twin = Twin { factor: 1.0 };
        let to_f32 = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (tokens, width, rows) in [(1, 16, 16), (5, 64, 32), (7, 48, 80), (3, 1040, 272)] {
                let input = drawn(tokens, width, dtype)?;
                let (bits, scales) = gpu.round_tokens(&input.to_device(&device)?)?;
                let (twin_bits, twin_scales) = twin.round_tokens(&input)?;
                assert_eq!(to_f32(&scales)?, to_f32(&twin_scales)?, "{dtype:?} {tokens} {width}: scales");
                assert_eq!(to_f32(&widened(&bits, DType::F32)?)?, to_f32(&twin_bits)?, "{dtype:?} {tokens} {width}: values");
                let weight = Tensor::randn(0.0_f32, 1.0, (rows, width), &Device::Cpu)?.to_dtype(DType::F8E4M3)?;
                let product = gpu.multiply(&bits, &weight.to_device(&device)?)?;
                let twin_product = twin.multiply(&twin_bits, &weight)?;
                for scales_of_weight in [1, rows] {
                    let scale = Tensor::rand(0.5_f32, 2.0, scales_of_weight, &Device::Cpu)?;
                    let bias = Tensor::randn(0.0_f32, 1.0, rows, &Device::Cpu)?.to_dtype(dtype)?;
                    let ours = gpu.finish(&product, &scales, &scale.to_device(&device)?, &bias.to_device(&device)?)?;
                    let exact = twin.finish(&twin_product, &twin_scales, &scale, &bias)?;
                    for (ours, exact) in to_f32(&ours)?.iter().zip(to_f32(&exact)?) {
                        // A product may be summed in another order: by bf16's rounding of it.
                        assert!(
                            (ours - exact).abs() <= 1e-4 + exact.abs() / 64.0,
                            "{dtype:?} {tokens} {width}: {ours} is not {exact}"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// As on a GPU without such products, or with widths that they do not take.
    #[cfg(feature = "cuda")]
    #[test]
    fn weights_are_made_whole_on_a_gpu_to_what_they_are_on_a_cpu() -> Result<()> {
        let device = super::super::device::open().map_err(Error::wrap)?;
        let draw = |shape: (usize, usize)| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu);
        let (input, bits) = (draw((5, 24))?, draw((7, 24))?.to_dtype(DType::F8E4M3)?);
        let (scale, bias) = (draw((1, 7))?.squeeze(0)?, draw((1, 7))?.squeeze(0)?);
        let exact = forward_whole(&input, &bits, &scale, &bias)?.flatten_all()?.to_vec1::<f32>()?;
        let on = |tensor: &Tensor| tensor.to_device(&device);
        let ours = forward_whole(&on(&input)?, &on(&bits)?, &on(&scale)?, &on(&bias)?)?.flatten_all()?.to_vec1::<f32>()?;
        for (ours, exact) in ours.iter().zip(exact) {
            assert!((ours - exact).abs() <= 1e-5 * (1.0 + exact.abs()), "{ours} is not {exact}");
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn every_8_bit_value_is_made_whole_on_a_gpu() -> Result<()> {
        let device = super::super::device::open().map_err(Error::wrap)?;
        let values: Vec<f32> =
            (-448..=448).map(|value| value as f32).chain((0..64).map(|value| value as f32 / 512.0)).collect();
        let bits = Tensor::new(values, &Device::Cpu)?.to_dtype(DType::F8E4M3)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let ours = widened(&bits.to_device(&device)?, dtype)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            assert_eq!(ours.to_vec1::<f32>()?, bits.to_dtype(DType::F32)?.to_vec1::<f32>()?, "{dtype:?}");
        }
        Ok(())
    }
}
