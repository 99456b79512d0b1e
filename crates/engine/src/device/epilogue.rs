//! What follows a product or a convolution on a GPU, as operations over candle's tensors: one kernel in place of two or three.

use std::ops::Range;

use atelier_kernels::cuda::epilogue::{Addition, geglu as geglu_of, open};
use atelier_kernels::cuda::modules::Element;
use atelier_kernels::elementwise::Gate;
use candle_core::cuda_backend::CudaDType;
use candle_core::{CpuStorage, CudaStorage, DType, Error, InplaceOp3, Layout, Result, Tensor};
use half::{bf16, f16};

use super::own_kernels::{has_kernels, in_order, run};

/// Makes `output` (..., channels, `places`), which nothing else has, `before` + (`bias` + `output`), rounded once. `bias`: all channels', or those of each
/// image; `before`: of the output's shape. `None` where there is no kernel for them: on a CPU, or of several formats.
pub(crate) fn add_bias(output: &Tensor, bias: &Tensor, before: Option<&Tensor>, places: usize) -> Option<Result<()>> {
    let is_alike = |tensor: &Tensor| tensor.dtype() == output.dtype();
    let fits = has_kernels(output) && output.is_contiguous() && is_alike(bias) && before.is_none_or(is_alike);
    fits.then(|| {
        if let Some(before) = before
            && before.dims() != output.dims()
        {
            return Err(Error::msg(format!("{:?} cannot be added to {:?}", before.dims(), output.dims())));
        }
        let bias = in_order(bias)?;
        let before = before.map(in_order).transpose()?;
        let add = AddBias { places, has_before: before.is_some() };
        output.inplace_op3(&bias, before.as_ref().unwrap_or(&bias), &add)
    })
}

/// GEGLU with the exact gelu of `both` (..., 2·width), values before gates, + `bias` (2·width): (..., width). `None` where there is no kernel for them.
pub(crate) fn geglu(both: &Tensor, bias: &Tensor) -> Option<Result<Tensor>> {
    let fits = has_kernels(both) && bias.dtype() == both.dtype() && bias.elem_count() > 0;
    let of = match both.dtype() {
        DType::F16 => geglu_in::<f16>,
        DType::BF16 => geglu_in::<bf16>,
        _ => geglu_in::<f32>,
    };
    fits.then(|| of(both, bias))
}

fn geglu_in<T: Element + CudaDType>(both: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mut shape = both.dims().to_vec();
    let last = shape.last_mut().filter(|last| **last == bias.elem_count() && last.is_multiple_of(2));
    let Some(last) = last else {
        return Err(Error::msg(format!("{:?} are no values and gates with {} biases", both.dims(), bias.elem_count())));
    };
    *last /= 2;
    run([both, bias], &shape.into(), |device, [both, bias]| {
        let output = geglu_of::<T>(&device.cuda_stream(), both, bias).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

/// `values` times what `gate` makes of `gates`, both of one shape, rounded once. `None` where there is no kernel for them.
pub(crate) fn opened(gate: Gate, gates: &Tensor, values: &Tensor) -> Option<Result<Tensor>> {
    let fits = has_kernels(values) && gates.dtype() == values.dtype() && gates.dims() == values.dims();
    let of = match values.dtype() {
        DType::F16 => opened_in::<f16>,
        DType::BF16 => opened_in::<bf16>,
        _ => opened_in::<f32>,
    };
    fits.then(|| of(gate, gates, values))
}

fn opened_in<T: Element + CudaDType>(gate: Gate, gates: &Tensor, values: &Tensor) -> Result<Tensor> {
    run([gates, values], values.shape(), |device, [gates, values]| {
        let output = open::<T>(&device.cuda_stream(), gate, gates, values).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

struct AddBias {
    places: usize,
    has_before: bool,
}

impl AddBias {
    fn run<T: Element + CudaDType>(
        &self,
        (output, at_output): (&mut CudaStorage, &Layout),
        (bias, at_bias): (&CudaStorage, &Layout),
        (before, at_before): (&CudaStorage, &Layout),
    ) -> Result<()> {
        let stream = output.device.cuda_stream();
        let bias = bias.as_cuda_slice::<T>()?.slice(part(at_bias));
        let before = before.as_cuda_slice::<T>()?.slice(part(at_before));
        let addition =
            Addition { bias: &bias, residual: self.has_before.then_some(&before), places: self.places, channels_last: None };
        let mut values = output.as_cuda_slice_mut::<T>()?.slice_mut(part(at_output));
        addition.add_to(&stream, &mut values).map_err(Error::wrap)
    }
}

impl InplaceOp3 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        Err(Error::msg("our CUDA kernels are for a GPU"))
    }

    fn cuda_fwd(
        &self,
        output: &mut CudaStorage,
        at_output: &Layout,
        bias: &CudaStorage,
        at_bias: &Layout,
        before: &CudaStorage,
        at_before: &Layout,
    ) -> Result<()> {
        let dtype = candle_core::backend::BackendStorage::dtype(output);
        let output = (output, at_output);
        let bias = (bias, at_bias);
        let before = (before, at_before);
        match dtype {
            DType::F16 => self.run::<f16>(output, bias, before),
            DType::BF16 => self.run::<bf16>(output, bias, before),
            _ => self.run::<f32>(output, bias, before),
        }
    }
}

/// Where a tensor in order lies.
fn part(layout: &Layout) -> Range<usize> {
    layout.start_offset()..layout.start_offset() + layout.shape().elem_count()
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;
    use crate::activations::geglu as geglu_of_layers;

    fn on_gpu() -> Result<Device> {
        crate::device::open().map_err(Error::wrap)
    }

    /// Half a unit in the last place of what is 16 at most.
    fn rounding(dtype: DType) -> f32 {
        16.0 * match dtype {
            DType::F32 => 1e-6,
            DType::F16 => 2.0_f32.powi(-11),
            _ => 2.0_f32.powi(-8),
        }
    }

    fn in_f32(tensor: &Tensor) -> Result<Tensor> {
        tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)
    }

    fn assert_close(ours: &Tensor, exact: &Tensor, dtype: DType, what: &str) -> Result<()> {
        assert_eq!(ours.dims(), exact.dims(), "{what}");
        let off = (in_f32(ours)? - exact)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off <= rounding(dtype), "{what} {dtype:?}: off by {off}");
        Ok(())
    }

    fn drawn(shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)?.clamp(-4.0, 4.0)?.to_dtype(dtype)
    }

    #[test]
    fn biases_and_residuals_are_those_of_a_cpu() -> Result<()> {
        let device = on_gpu()?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            // Whole packs of 16 bytes, and none; more values than one round of all threads would be is a matter of the loop alone.
            for (batch, channels, places, of_each) in
                [(2, 8, 64, false), (2, 8, 64, true), (3, 5, 7, true), (1, 3, 9, false), (6, 16, 1, false), (5, 9, 1, false)]
            {
                let output = drawn(&[batch, channels, places], dtype)?;
                let bias = drawn(&[if of_each { batch } else { 1 }, channels], dtype)?;
                // The second of two: at an odd address where there are no whole packs.
                let both = drawn(&[2, batch, channels, places], dtype)?;
                let before = both.get(1)?;
                let before_there = both.to_device(&device)?.get(1)?;
                for before in [None, Some((&before, &before_there))] {
                    let exact = in_f32(&output)?.broadcast_add(&in_f32(&bias)?.unsqueeze(2)?)?;
                    let exact = before.map_or(Ok(exact.clone()), |(before, _)| in_f32(before)? + exact)?;
                    let ours = output.to_device(&device)?;
                    let there = before.map(|(_, there)| there);
                    add_bias(&ours, &bias.to_device(&device)?, there, places).expect("a kernel")?;
                    assert_close(&ours, &exact, dtype, &format!("{batch} {channels} {places}, of each {of_each}"))?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn geglu_is_that_of_a_cpu() -> Result<()> {
        let device = on_gpu()?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (rows, width) in [(5, 32), (3, 7), (1, 8)] {
                let both = drawn(&[2, rows, 2 * width], dtype)?;
                let bias = drawn(&[2 * width], dtype)?;
                let exact = geglu_of_layers(&in_f32(&both)?.broadcast_add(&in_f32(&bias)?)?)?;
                let ours = geglu(&both.to_device(&device)?, &bias.to_device(&device)?).expect("a kernel")?;
                assert_eq!(ours.dim(D::Minus1)?, width);
                assert_close(&ours, &exact, dtype, &format!("{rows} {width}"))?;
            }
        }
        Ok(())
    }

    #[test]
    fn open_gates_are_those_of_a_cpu() -> Result<()> {
        let device = on_gpu()?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (rows, width) in [(5, 32), (3, 7)] {
                // The second of two: at an odd address where there are no whole packs.
                let both = drawn(&[2, rows, width], dtype)?;
                let gates = in_f32(&both.get(1)?)?;
                let values = in_f32(&both.get(0)?)?;
                let there = both.to_device(&device)?;
                let exact = [(Gate::Gelu, gates.gelu_erf()?), (Gate::GeluTanh, gates.gelu()?), (Gate::Silu, gates.silu()?)];
                for (gate, open) in exact {
                    let ours = opened(gate, &there.get(1)?, &there.get(0)?).expect("a kernel")?;
                    assert_close(&ours, &(&values * open)?, dtype, &format!("{gate:?} {rows} {width}"))?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_there_is_no_kernel_for_is_left_to_others() -> Result<()> {
        let device = on_gpu()?;
        let here = Tensor::zeros((2, 4), DType::F32, &Device::Cpu)?;
        assert!(add_bias(&here, &here.get(0)?, None, 1).is_none() && geglu(&here, &here.get(0)?).is_none());
        let output = Tensor::zeros((2, 4), DType::F16, &device)?;
        let wide = Tensor::zeros(4, DType::F32, &device)?;
        assert!(add_bias(&output, &wide, None, 1).is_none() && geglu(&output, &wide).is_none());
        assert!(opened(Gate::Silu, &output.get(0)?, &wide).is_none() && opened(Gate::Silu, &here, &here).is_none());
        let other = Tensor::zeros((1, 4), DType::F16, &device)?;
        assert!(add_bias(&output, &other.get(0)?, Some(&other), 1).expect("a kernel").is_err());
        Ok(())
    }
}
