//! Gated layers on a GPU, as operations over candle's tensors: one product in place of two and what follows them (`cuda/gated.rs`).

use atelier_kernels::cuda::gated::{GatedFactors, is_preferred, run, takes};
use atelier_kernels::cuda::modules::HalfElement;
use atelier_kernels::elementwise::Gate;
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Error, Result, Storage, Tensor};
use half::{bf16, f16};

use super::own_kernels::{in_order, view};

/// What a layer gets, its weight (out, in) and its bias (out,).
type Operands<'a> = (&'a Tensor, &'a Tensor, Option<&'a Tensor>);

/// What the first layer of each pair makes, times what `gate` makes of the second's; of all pairs behind each other. Both layers of a pair get the same,
/// (..., in), or (1, T, in) where there are several pairs. Returns (..., out), or (1, the tokens of all, out). `None` where cuBLASLt is to be preferred,
/// and where there is no kernel for them: on a CPU, in f32, of several formats, or of sides that are no multiples of 8.
pub(crate) fn gated(layers: &[[Operands<'_>; 2]], gate: Gate) -> Option<Result<Tensor>> {
    let (input, ..) = &layers.first()?[0];
    let Device::Cuda(device) = input.device() else { return None };
    match is_preferred(&device.cuda_stream(), *input.dims().last()?) {
        Ok(true) => fused(device, layers, gate),
        Ok(false) => None,
        Err(error) => Some(Err(Error::wrap(error))),
    }
}

/// [`gated`] whatever is preferred.
fn fused(device: &CudaDevice, layers: &[[Operands<'_>; 2]], gate: Gate) -> Option<Result<Tensor>> {
    let dtype = layers[0][0].0.dtype();
    if !layers.iter().all(|pair| fits(pair, dtype)) {
        return None;
    }
    let of = match dtype {
        DType::F16 => of::<f16>,
        DType::BF16 => of::<bf16>,
        _ => return None,
    };
    Some(of(device, layers, gate, output_shape(layers)?))
}

fn fits([values, gates]: &[Operands<'_>; 2], dtype: DType) -> bool {
    let biases = [values.2, gates.2];
    let are_both = biases[0].is_some() == biases[1].is_some();
    let tensors = [values.0, values.1, gates.1].into_iter().chain(biases.into_iter().flatten());
    let sides = values.1.dims2().ok().filter(|sides| gates.1.dims2().is_ok_and(|others| others == *sides));
    are_both
        && sides.is_some_and(|(width, depth)| {
            takes(depth, width)
                && values.0.dims().last() == Some(&depth)
                && biases.iter().flatten().all(|bias| bias.dims() == [width])
        })
        && tensors.into_iter().all(|tensor| tensor.dtype() == dtype && tensor.device().is_cuda() && tensor.elem_count() > 0)
}

fn output_shape(layers: &[[Operands<'_>; 2]]) -> Option<Vec<usize>> {
    let width = layers[0][0].1.dims()[0];
    let mut shape = layers[0][0].0.dims().to_vec();
    *shape.last_mut()? = width;
    if layers.len() > 1 {
        for [(input, weight, _), _] in layers {
            if input.rank() != 3 || input.dims()[0] != 1 || weight.dims()[0] != width {
                return None;
            }
        }
        shape[1] = layers.iter().map(|[(input, ..), _]| input.dims()[1]).sum();
    }
    Some(shape)
}

fn of<T: HalfElement + CudaDType>(
    device: &CudaDevice,
    layers: &[[Operands<'_>; 2]],
    gate: Gate,
    shape: Vec<usize>,
) -> Result<Tensor> {
    // Input, both weights, and both biases; where there are none, weights stand in their place and are not read.
    let tensors = layers
        .iter()
        .flat_map(|[values, gates]| [values.0, values.1, gates.1, values.2.unwrap_or(values.1), gates.2.unwrap_or(gates.1)]);
    let ordered = tensors.map(in_order).collect::<Result<Vec<_>>>()?;
    let lying: Vec<_> = ordered.iter().map(Tensor::storage_and_layout).collect();
    let views = lying.iter().map(|(storage, layout)| view::<T>(storage, layout)).collect::<Result<Vec<_>>>()?;
    let factors = layers.iter().zip(views.chunks_exact(5)).map(|([values, _], views)| {
        let width = values.1.dims()[0];
        let depth = values.1.dims()[1];
        GatedFactors {
            input: &views[0],
            weights: [&views[1], &views[2]],
            biases: values.2.map(|_| [&views[3], &views[4]]),
            rows: values.0.elem_count() / depth,
            depth,
            width,
        }
    });
    let output = run(&device.cuda_stream(), &factors.collect::<Vec<_>>(), gate).map_err(Error::wrap)?;
    let output = CudaStorage::wrap_cuda_slice(output, device.clone());
    Ok(Tensor::from_storage(Storage::Cuda(output), shape, BackpropOp::none(), false))
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Tensor};

    use super::*;
    use crate::device::own_kernels::tests::{doubles, drawn, furthest};

    /// Also where cuBLASLt is to be preferred.
    fn at_once(layers: &[[Operands<'_>; 2]], gate: Gate) -> Option<Result<Tensor>> {
        let Device::Cuda(device) = layers[0][0].0.device() else { return None };
        fused(device, layers, gate)
    }

    struct Layer {
        weight: Tensor,
        bias: Tensor,
    }

    impl Layer {
        /// The first `width` of more rows or, where it `is_second`, those behind them.
        fn of(both: &(Tensor, Tensor), is_second: bool, width: usize) -> Result<Self> {
            let first = if is_second { width } else { 0 };
            Ok(Self { weight: both.0.narrow(0, first, width)?, bias: both.1.narrow(0, first, width)? })
        }

        fn operands<'a>(&'a self, input: &'a Tensor, has_bias: bool) -> Operands<'a> {
            (input, &self.weight, has_bias.then_some(&self.bias))
        }
    }

    fn exact(input: &Tensor, layers: [&Layer; 2], gate: Gate, has_bias: bool) -> Result<Vec<f64>> {
        let of = |layer: &Layer| {
            let output = input.to_dtype(DType::F64)?.broadcast_matmul(&layer.weight.to_dtype(DType::F64)?.t()?)?;
            if has_bias { output.broadcast_add(&layer.bias.to_dtype(DType::F64)?) } else { Ok(output) }
        };
        let gates = of(layers[1])?;
        let opened = match gate {
            Gate::Gelu => gates.gelu_erf()?,
            Gate::GeluTanh => gates.gelu()?,
            Gate::Silu => gates.silu()?,
        };
        (of(layers[0])? * opened)?.flatten_all()?.to_vec1()
    }

    /// Weights and biases of two layers behind each other.
    fn both(width: usize, depth: usize, dtype: DType) -> Result<(Tensor, Tensor)> {
        Ok(((drawn(&[2 * width, depth], DType::F32)? * 0.2)?.to_dtype(dtype)?, drawn(&[2 * width], dtype)?))
    }

    fn there(both: &(Tensor, Tensor), device: &Device) -> Result<(Tensor, Tensor)> {
        Ok((both.0.to_device(device)?, both.1.to_device(device)?))
    }

    #[test]
    fn gated_layers_are_those_of_float64_rounded_once() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        // Sides below a tile, of several tiles and a part of one; depths of a part of a piece, of one, and of more than are ahead.
        for (rows, depth, width) in [(5, 8, 8), (128, 32, 64), (130, 72, 136), (3, 320, 72)] {
            for dtype in [DType::F16, DType::BF16] {
                let unit = if dtype == DType::F16 { 2.0_f64.powi(-11) } else { 2.0_f64.powi(-8) };
                let input = drawn(&[1, rows, depth], dtype)?;
                let both = both(width, depth, dtype)?;
                let both_there = there(&both, &device)?;
                let layers = [Layer::of(&both, false, width)?, Layer::of(&both, true, width)?];
                let [values, gates] = [Layer::of(&both_there, false, width)?, Layer::of(&both_there, true, width)?];
                let input_there = input.to_device(&device)?;
                for gate in [Gate::Gelu, Gate::GeluTanh, Gate::Silu] {
                    for has_bias in [true, false] {
                        let pair = [values.operands(&input_there, has_bias), gates.operands(&input_there, has_bias)];
                        let ours = at_once(&[pair], gate).expect("a kernel")?;
                        assert_eq!(ours.dims(), [1, rows, width]);
                        let off = furthest(&doubles(&ours)?, &exact(&input, layers.each_ref(), gate, has_bias)?);
                        assert!(off <= unit + 1e-5, "{dtype:?} {rows} {depth} {width} {gate:?} {has_bias}: off by {off}");
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn pairs_lie_behind_each_other() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let input = drawn(&[1, 9, 24], DType::BF16)?;
        let parts = [input.narrow(1, 0, 3)?.contiguous()?, input.narrow(1, 3, 6)?.contiguous()?];
        let both = [both(16, 24, DType::BF16)?, both(16, 24, DType::BF16)?];
        let mut of_each = Vec::new();
        for (part, both) in parts.iter().zip(&both) {
            let both = there(both, &device)?;
            of_each.push((part.to_device(&device)?, Layer::of(&both, false, 16)?, Layer::of(&both, true, 16)?));
        }
        let pairs: Vec<_> =
            of_each.iter().map(|(part, values, gates)| [values.operands(part, true), gates.operands(part, true)]).collect();
        let joined = at_once(&pairs, Gate::Silu).expect("a kernel")?;
        let [first, second] = [&pairs[..1], &pairs[1..]].map(|pair| at_once(pair, Gate::Silu).expect("a kernel"));
        assert_eq!(doubles(&joined)?, doubles(&Tensor::cat(&[first?, second?], 1)?)?);
        assert_eq!(joined.dims(), [1, 9, 16]);
        Ok(())
    }

    #[test]
    fn what_there_is_no_kernel_for_is_left_to_others() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let zeros = |shape: &[usize], dtype: DType, device: &Device| Tensor::zeros(shape, dtype, device);
        let input = zeros(&[1, 5, 8], DType::F16, &device)?;
        let weight = zeros(&[16, 8], DType::F16, &device)?;
        let bias = zeros(&[16], DType::F16, &device)?;
        let layer = (&input, &weight, Some(&bias));
        assert_eq!(at_once(&[[layer, layer]], Gate::Silu).expect("a kernel")?.dim(D::Minus1)?, 16);
        assert!(at_once(&[[layer, (&input, &weight, None)]], Gate::Silu).is_none(), "a bias of one alone");
        let narrow = weight.narrow(0, 0, 8)?;
        assert!(at_once(&[[(&input, &weight, None), (&input, &narrow, None)]], Gate::Silu).is_none(), "other sides");
        let odd = weight.narrow(0, 0, 9)?;
        assert!(at_once(&[[(&input, &odd, None); 2]], Gate::Silu).is_none(), "no multiple of 8");
        let of_f32 = zeros(&[16], DType::F32, &device)?;
        assert!(at_once(&[[(&input, &weight, Some(&of_f32)); 2]], Gate::Silu).is_none(), "several formats");
        let of_f32 = [zeros(&[1, 5, 8], DType::F32, &device)?, zeros(&[16, 8], DType::F32, &device)?];
        assert!(at_once(&[[(&of_f32[0], &of_f32[1], None); 2]], Gate::Silu).is_none(), "f32");
        let here = [zeros(&[1, 5, 8], DType::F16, &Device::Cpu)?, zeros(&[16, 8], DType::F16, &Device::Cpu)?];
        assert!(gated(&[[(&here[0], &here[1], None); 2]], Gate::Silu).is_none(), "a CPU");
        let images = input.reshape((1, 1, 5, 8))?;
        assert!(at_once(&[[layer, layer], [(&images, &weight, Some(&bias)); 2]], Gate::Silu).is_none(), "no tokens");
        Ok(())
    }
}
