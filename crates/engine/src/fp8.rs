//! Products with 8-bit weights on a GPU that has them: the input is rounded to 8 bits as well, each token by a scale of its own.
//!
//! As `LightX2V`'s fp8 linear layers do it (`lightx2v/common/ops/mm/mm_weight.py`, class `MMWeightWfp8channelAfp8channeldynamicSgl`).

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use super::device::{Fp8Device, Fp8Layer, Fp8Tokens, fp8_device, widened};

/// The products of one device.
#[derive(Clone)]
pub(super) struct Fp8Weight {
    device: Arc<dyn Fp8Device>,
}

impl Fp8Weight {
    /// `None` where the device has none, or its results are not what they should be: it was tried. The log says which.
    pub(super) fn of(device: &Device) -> Option<Self> {
        let fp8 = Self { device: fp8_device(device, true)? };
        if let Err(error) = fp8.tried(device) {
            tracing::warn!(%error, "this GPU's 8-bit products are not used: weights are made whole");
            return None;
        }
        let Err(error) = fp8.tried_in_one(device) else { return Some(fp8) };
        tracing::warn!(%error, "this GPU's 8-bit products with scales and bias in them are not used: a kernel follows each");
        Some(Self { device: fp8_device(device, false)? })
    }

    /// A small product next to the same with whole values.
    fn tried(&self, device: &Device) -> Result<()> {
        let input = drawn((5, TRIED_WIDTH))?;
        let weight = drawn((32, TRIED_WIDTH))?;
        let bits = weight.to_dtype(DType::F8E4M3)?.to_device(device)?;
        let scale = Tensor::ones(1, DType::F32, device)?;
        let bias = Tensor::zeros(32, DType::F32, device)?;
        let layer = Fp8Layer { bits: &bits, scale: &scale, bias: &bias };
        check_near(&self.forward(&input.to_device(device)?, layer)?, &input.matmul(&weight.t()?)?)
    }

    /// The same as a try-on has them: bf16, with scales by row and biases, tokens in two parts, and gelu.
    fn tried_in_one(&self, device: &Device) -> Result<()> {
        const FIRST: usize = 3;
        let input = drawn((7, TRIED_WIDTH))?;
        let layers = [(0.5_f32, 1.0), (2.0, -1.0)].map(|(least, lift)| {
            let scale = Tensor::rand(least, 2.0 * least, 32, &Device::Cpu)?;
            let bias = (drawn((1, 32))?.squeeze(0)? + lift)?;
            Ok::<_, Error>((drawn((32, TRIED_WIDTH))?, scale, bias))
        });
        let layers = layers.into_iter().collect::<Result<Vec<_>>>()?;
        let moved = layers.iter().map(|(weight, scale, bias)| {
            let bits = weight.to_dtype(DType::F8E4M3)?.to_device(device)?;
            Ok((bits, scale.to_device(device)?, bias.to_dtype(DType::BF16)?.to_device(device)?))
        });
        let moved = moved.collect::<Result<Vec<_>>>()?;
        let there = [0, 1].map(|part: usize| Fp8Layer { bits: &moved[part].0, scale: &moved[part].1, bias: &moved[part].2 });
        let tokens = self.round(&input.to_dtype(DType::BF16)?.to_device(device)?, FIRST)?;
        let places = [(0, FIRST), (FIRST, input.dim(0)? - FIRST)];
        let exact = layers.iter().zip(places).map(|((weight, scale, bias), (place, count))| {
            input.narrow(0, place, count)?.matmul(&weight.t()?)?.broadcast_mul(scale)?.broadcast_add(bias)
        });
        let exact = Tensor::cat(&exact.collect::<Result<Vec<_>>>()?, 0)?;
        check_near(&self.joined(&tokens, there, false)?, &exact)?;
        check_near(&self.joined(&tokens, there, true)?, &exact.gelu()?)
    }

    /// Whether weights (out, in) can be multiplied so.
    pub(super) fn fits(weight: &Tensor) -> bool {
        weight.dims().iter().all(|side| side.is_multiple_of(16))
    }

    /// `input`: (T, in), f32, f16 or bf16; the bias is in its format. Returns (T, out), in the same format.
    pub(super) fn forward(&self, input: &Tensor, layer: Fp8Layer<'_>) -> Result<Tensor> {
        self.joined(&self.round(input, input.dim(0)?)?, [layer; 2], false)
    }

    /// `input`: (T, in), f32, f16 or bf16, of which `first` tokens are one part.
    pub(super) fn round(&self, input: &Tensor, first: usize) -> Result<Fp8Tokens> {
        self.device.round_tokens(input, first)
    }

    /// What each part's layer makes of it, or gelu of that, the one with tanh; weights are of one shape. Returns (T, out).
    pub(super) fn joined(&self, tokens: &Fp8Tokens, layers: [Fp8Layer<'_>; 2], gelu: bool) -> Result<Tensor> {
        let (count, depth) = tokens.bits.dims2()?;
        let (rows, _) = layers[0].bits.dims2()?;
        for Fp8Layer { bits, scale, bias } in layers {
            if bits.dims() != [rows, depth] || bias.dims() != [rows] || ![1, rows].contains(&scale.elem_count()) {
                let found = [tokens.bits.dims(), bits.dims(), scale.dims(), bias.dims()];
                return Err(Error::msg(format!("no layer of tokens, weight, scales and bias of {found:?}")));
            }
        }
        if tokens.first_scales.elem_count() + tokens.other_scales.elem_count() != count {
            return Err(Error::msg(format!("no scale for each of {count} tokens")));
        }
        self.device.multiply(tokens, layers, gelu)
    }
}

/// Of what is tried: what cuBLASLt asks of widths, and some more.
const TRIED_WIDTH: usize = 64;

fn drawn(shape: (usize, usize)) -> Result<Tensor> {
    Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)
}

/// With 3 bits behind the point each number is off by a sixteenth at most.
fn check_near(output: &Tensor, exact: &Tensor) -> Result<()> {
    const FURTHEST: f32 = 0.1;
    let size = |tensor: &Tensor| tensor.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>();
    let output = output.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let off = size(&(output - exact)?)? / size(exact)?;
    if off <= FURTHEST { Ok(()) } else { Err(Error::msg(format!("off by {off} of what it should be"))) }
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
    fn round_tokens(&self, input: &Tensor, first: usize) -> Result<Fp8Tokens> {
        let input = input.to_dtype(DType::F32)?;
        // A quotient: candle would multiply by 1/448, which rounds twice.
        let scale = input
            .abs()?
            .max_keepdim(candle_core::D::Minus1)?
            .broadcast_div(&Tensor::new(448.0_f32, &Device::Cpu)?)?
            .maximum(1e-12)?;
        let bits = input.broadcast_div(&scale)?.to_dtype(DType::F8E4M3)?;
        let scale = scale.squeeze(1)?;
        let others = scale.dim(0)? - first;
        Ok(Fp8Tokens { bits, first_scales: scale.narrow(0, 0, first)?, other_scales: scale.narrow(0, first, others)? })
    }

    fn multiply(&self, tokens: &Fp8Tokens, layers: [Fp8Layer<'_>; 2], gelu: bool) -> Result<Tensor> {
        let mut place = 0;
        let mut parts = Vec::new();
        for (scales, Fp8Layer { bits, scale, bias }) in [&tokens.first_scales, &tokens.other_scales].into_iter().zip(layers) {
            assert_eq!((tokens.bits.dtype(), bits.dtype()), (DType::F8E4M3, DType::F8E4M3));
            let count = scales.dim(0)?;
            if count > 0 {
                let part = tokens.bits.narrow(0, place, count)?.to_dtype(DType::F32)?;
                let product = (part.matmul(&bits.to_dtype(DType::F32)?.t()?)? * self.factor)?;
                let scaled = product.broadcast_mul(&scales.unsqueeze(1)?)?.broadcast_mul(scale)?;
                let sum = scaled.broadcast_add(&bias.to_dtype(DType::F32)?)?;
                parts.push(if gelu { sum.gelu()? } else { sum }.to_dtype(bias.dtype())?);
            }
            place += count;
        }
        Tensor::cat(&parts, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_rounded_by_its_own_scale() -> Result<()> {
        let fp8 = Fp8Weight { device: Arc::new(Twin { factor: 1.0 }) };
        fp8.tried(&Device::Cpu)?;
        fp8.tried_in_one(&Device::Cpu)?;
        // Values that 8 bits hold exactly once each token's largest is 448: nothing may be lost but bf16's rounding.
        let tokens =
            [[448.0_f32, -224.0, 3.5, 0.0], [0.007, -0.0035, 0.000_437_5, 0.0], [0.0; 4], [4.48e6, 2.24e6, -1.12e6, 0.0]];
        let input = Tensor::new(&tokens, &Device::Cpu)?;
        let weight = Tensor::new(&[[1.0_f32, 0.5, 2.0, -4.0], [-2.0, 0.25, 8.0, 1.0]], &Device::Cpu)?;
        let scale = Tensor::new(&[0.5_f32, 2.0], &Device::Cpu)?;
        let bits = weight.to_dtype(DType::F8E4M3)?;
        let none = Tensor::zeros(2, DType::F32, &Device::Cpu)?;
        let layer = Fp8Layer { bits: &bits, scale: &scale, bias: &none };
        let ours = fp8.forward(&input, layer)?.to_vec2::<f32>()?;
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
        let wrong = Fp8Weight { device: Arc::new(Twin { factor: 2.0 }) };
        assert!(wrong.tried(&Device::Cpu).is_err() && wrong.tried_in_one(&Device::Cpu).is_err());
        assert!(Fp8Weight::of(&Device::Cpu).is_none(), "a CPU has none");
    }
}
