//! Products of tokens and weights on a GPU, with what follows them in the same operation and before anything is rounded (`cuda/matmul.rs`).

use atelier_kernels::cuda::matmul::{ALIGNED_BYTES, Factors, Following, Matmul, Multiplied, Sides};
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Error, Result, Storage, Tensor};
use half::{bf16, f16};

use super::own_kernels::{in_order, view};

/// A product and what is added to it.
#[derive(Clone, Copy)]
struct Operands<'a> {
    /// (..., in).
    input: &'a Tensor,
    /// (out, in).
    weight: &'a Tensor,
    /// (out,).
    bias: Option<&'a Tensor>,
    /// (..., out).
    before: Option<&'a Tensor>,
}

/// `before` + input·weightᵀ + `bias`. `input`: (..., in); `weight`: (out, in); `bias`: (out,); `before`: (..., out). Returns (..., out). `None` where there
/// is no such product: on a CPU, in f32, or of several formats.
pub(crate) fn linear(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    before: Option<&Tensor>,
) -> Option<Result<Tensor>> {
    let operands = Operands { input, weight, bias, before };
    multiplied(&[operands], false, operands.output_shape()?)
}

/// gelu(input·weightᵀ + `bias`), the one with tanh, as [`linear`]. `None` without a bias as well.
pub(crate) fn linear_gelu((input, weight, bias): (&Tensor, &Tensor, Option<&Tensor>)) -> Option<Result<Tensor>> {
    let operands = Operands { input, weight, bias, before: None };
    multiplied(&[operands], true, operands.output_shape()?)
}

/// [`linear`] of two behind each other, or [`linear_gelu`]. `both`: input (1, T, in), weight and bias of each. Returns (1, the tokens of both, out).
pub(crate) fn linears_joined(both: [(&Tensor, &Tensor, Option<&Tensor>); 2], gelu: bool) -> Option<Result<Tensor>> {
    let both = both.map(|(input, weight, bias)| Operands { input, weight, bias, before: None });
    let shape = match [&*both[0].output_shape()?, &*both[1].output_shape()?] {
        [[1, first, width], [1, second, other]] if width == other => vec![1, first + second, *width],
        _ => return None,
    };
    multiplied(&both, gelu, shape)
}

/// Each has the same of bias and `before`; gelu has a bias alone. `None` where cuBLASLt has no such product.
fn multiplied(all: &[Operands<'_>], gelu: bool, shape: Vec<usize>) -> Option<Result<Tensor>> {
    let Device::Cuda(device) = all[0].input.device() else { return None };
    let dtype = all[0].input.dtype();
    let following = all[0].following(gelu)?;
    // Each result but the last moves the next one's address.
    let mut moved_bytes = all[..all.len() - 1].iter().map(|operands| operands.sides().output() * dtype.size_in_bytes());
    if !moved_bytes.all(|bytes| bytes.is_multiple_of(ALIGNED_BYTES))
        || !all.iter().all(|operands| operands.following(gelu) == Some(following) && operands.is_on_gpu_in(dtype))
    {
        return None;
    }
    let of = match dtype {
        DType::F16 => of::<f16>,
        DType::BF16 => of::<bf16>,
        _ => return None,
    };
    of(device, all, following, shape).transpose()
}

impl<'a> Operands<'a> {
    /// `None` where the sides do not fit.
    fn output_shape(&self) -> Option<Vec<usize>> {
        let (out_features, in_features) = self.weight.dims2().ok()?;
        let mut shape = self.input.dims().to_vec();
        *shape.last_mut().filter(|last| **last == in_features)? = out_features;
        let fits = self.bias.is_none_or(|bias| bias.dims() == [out_features])
            && self.before.is_none_or(|before| before.dims() == shape);
        fits.then_some(shape)
    }

    fn following(&self, gelu: bool) -> Option<Following> {
        match (self.bias, self.before, gelu) {
            (Some(_), None, true) => Some(Following::Gelu),
            (Some(_), Some(_), false) => Some(Following::BiasAndResidual),
            (Some(_), None, false) => Some(Following::Bias),
            (None, Some(_), false) => Some(Following::Residual),
            (None, None, false) => Some(Following::Nothing),
            _ => None,
        }
    }

    /// Weight, input, bias and `before`; what is not there is not read, and has one of the others in its place.
    fn tensors(&self) -> impl Iterator<Item = &'a Tensor> + use<'a> {
        let Self { input, weight, bias, before } = *self;
        [weight, input, bias.unwrap_or(weight), before.unwrap_or(input)].into_iter()
    }

    fn is_on_gpu_in(&self, dtype: DType) -> bool {
        self.tensors().all(|tensor| tensor.dtype() == dtype && tensor.device().is_cuda() && tensor.elem_count() > 0)
    }

    fn sides(&self) -> Sides {
        let rows = self.weight.dims()[0];
        let depth = self.weight.dims()[1];
        Sides { rows, columns: self.input.elem_count() / depth.max(1), depth }
    }
}

fn of<T: Multiplied + CudaDType>(
    device: &CudaDevice,
    all: &[Operands<'_>],
    following: Following,
    shape: Vec<usize>,
) -> Result<Option<Tensor>> {
    let matmul = Matmul::of(&device.cuda_stream()).map_err(Error::wrap)?;
    let ordered = all.iter().flat_map(Operands::tensors).map(in_order).collect::<Result<Vec<_>>>()?;
    let lying: Vec<_> = ordered.iter().map(Tensor::storage_and_layout).collect();
    let views = lying.iter().map(|(storage, layout)| view::<T>(storage, layout)).collect::<Result<Vec<_>>>()?;
    let factors = all.iter().zip(views.chunks_exact(4)).map(|(operands, views)| Factors {
        weight: &views[0],
        input: &views[1],
        bias: &views[2],
        residual: &views[3],
        sides: operands.sides(),
    });
    let output = match matmul.multiply(&factors.collect::<Vec<_>>(), following) {
        Err(error) if error.is_refusal() => return Ok(None),
        output => output.map_err(Error::wrap)?,
    };
    let output = CudaStorage::wrap_cuda_slice(output, device.clone());
    Ok(Some(Tensor::from_storage(Storage::Cuda(output), shape, BackpropOp::none(), false)))
}

#[cfg(test)]
mod tests {
    use candle_core::D;

    use super::*;
    use crate::device::open;

    fn drawn(shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)?.clamp(-4.0, 4.0)?.to_dtype(dtype)
    }

    fn wide(tensor: &Tensor) -> Result<Tensor> {
        tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)
    }

    /// In f64; `operands` are on the CPU.
    fn exact(operands: Operands<'_>, gelu: bool) -> Result<Tensor> {
        let mut output = wide(operands.input)?.broadcast_matmul(&wide(operands.weight)?.t()?)?;
        if let Some(bias) = operands.bias {
            output = output.broadcast_add(&wide(bias)?)?;
        }
        if let Some(before) = operands.before {
            output = (output + wide(before)?)?;
        }
        if gelu { output.gelu() } else { Ok(output) }
    }

    /// Rounded once: half a unit in the last place of the largest.
    fn assert_close(ours: &Tensor, exact: &Tensor, dtype: DType, what: &str) -> Result<()> {
        assert_eq!(ours.dims(), exact.dims(), "{what}");
        let off = (wide(ours)? - exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
        let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
        let unit = if dtype == DType::F16 { 2.0_f64.powi(-11) } else { 2.0_f64.powi(-8) };
        assert!(off <= largest * unit + 1e-5, "{what} {dtype:?}: off by {off} of {largest}");
        Ok(())
    }

    #[test]
    fn products_and_what_follows_them_are_rounded_once() -> Result<()> {
        let device = open().map_err(Error::wrap)?;
        let there = |tensor: &Tensor| tensor.to_device(&device);
        for dtype in [DType::F16, DType::BF16] {
            for (tokens, depth, width) in [(5, 64, 48), (1, 320, 8), (77, 40, 24), (3, 7, 9), (2, 33, 1)] {
                // The second of two: read from where it lies, or from a copy where that is no multiple of 16 bytes.
                let both = drawn(&[2, 2, tokens, depth], dtype)?;
                let input = &both.get(1)?;
                let weight = &drawn(&[width, depth], dtype)?;
                let bias = &drawn(&[width], dtype)?;
                let before = &drawn(&[2, tokens, width], dtype)?;
                let input_there = &there(&both)?.get(1)?;
                let weight_there = &there(weight)?;
                let bias_there = &there(bias)?;
                let before_there = &there(before)?;
                let what = format!("{tokens} {depth} {width}");
                for (has_bias, has_before) in [(true, true), (true, false), (false, true), (false, false)] {
                    let of = |input, weight, bias, before| Operands {
                        input,
                        weight,
                        bias: Some(bias).filter(|_| has_bias),
                        before: Some(before).filter(|_| has_before),
                    };
                    let there = of(input_there, weight_there, bias_there, before_there);
                    let ours = linear(there.input, there.weight, there.bias, there.before).expect("a product")?;
                    assert_close(&ours, &exact(of(input, weight, bias, before), false)?, dtype, &what)?;
                }
                let operands = Operands { input, weight, bias: Some(bias), before: None };
                let ours = linear_gelu((input_there, weight_there, Some(bias_there))).expect("a product")?;
                assert_close(&ours, &exact(operands, true)?, dtype, &format!("{what}, gelu"))?;
            }
        }
        Ok(())
    }

    #[test]
    fn two_layers_lie_behind_each_other() -> Result<()> {
        let device = open().map_err(Error::wrap)?;
        let there = |tensor: &Tensor| tensor.to_device(&device);
        let first = drawn(&[1, 5, 24], DType::BF16)?;
        let second = drawn(&[1, 3, 24], DType::BF16)?;
        let weights = drawn(&[2, 16, 24], DType::BF16)?;
        let biases = drawn(&[2, 16], DType::BF16)?;
        let weights_there = there(&weights)?;
        let biases_there = there(&biases)?;
        let on_cpu = [(&first, weights.get(0)?, biases.get(0)?), (&second, weights.get(1)?, biases.get(1)?)];
        let on_gpu = [
            (&there(&first)?, weights_there.get(0)?, biases_there.get(0)?),
            (&there(&second)?, weights_there.get(1)?, biases_there.get(1)?),
        ];
        for gelu in [false, true] {
            let exact = on_cpu
                .each_ref()
                .map(|(input, weight, bias)| exact(Operands { input, weight, bias: Some(bias), before: None }, gelu));
            let [exact_first, exact_second] = exact;
            let joined = linears_joined(on_gpu.each_ref().map(|(input, weight, bias)| (*input, weight, Some(bias))), gelu);
            let exact = Tensor::cat(&[exact_first?, exact_second?], 1)?;
            assert_close(&joined.expect("products")?, &exact, DType::BF16, &format!("gelu {gelu}"))?;
        }
        Ok(())
    }

    #[test]
    fn what_there_is_no_product_for_is_left_to_others() -> Result<()> {
        let device = open().map_err(Error::wrap)?;
        let zeros = |shape: &[usize], dtype: DType| Tensor::zeros(shape, dtype, &device);
        let input = &zeros(&[1, 5, 8], DType::F16)?;
        let weight = &zeros(&[3, 8], DType::F16)?;
        let bias = &zeros(&[3], DType::F16)?;
        assert_eq!(linear(input, weight, Some(bias), None).expect("a product")?.dim(D::Minus1)?, 3);
        let wide = zeros(&[3], DType::F32)?;
        assert!(linear(input, weight, Some(&wide), None).is_none(), "another format");
        let longer = zeros(&[4], DType::F16)?;
        assert!(linear(input, weight, Some(&longer), None).is_none(), "other sides");
        assert!(linear(input, weight, None, Some(bias)).is_none(), "another shape before it");
        assert!(linear(&input.narrow(1, 0, 0)?, weight, Some(bias), None).is_none(), "no tokens");
        assert!(linear_gelu((input, weight, None)).is_none(), "gelu without a bias");
        // The second would begin at 30 bytes.
        assert!(linears_joined([(input, weight, Some(bias)); 2], false).is_none());
        let of_f32 = [(); 2].map(|()| zeros(&[4, 8], DType::F32));
        let [input, weight] = of_f32;
        assert!(linear(&input?, &weight?, None, None).is_none());
        Ok(())
    }
}
