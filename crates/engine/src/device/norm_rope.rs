//! Norm and rotary positions in one kernel, as an operation over candle's tensors.

use atelier_kernels::cuda::modules::Element;
use atelier_kernels::cuda::rotary::NormRope;
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Error, Result, Storage, Tensor};
use half::{bf16, f16};

use super::own_kernels::{in_order, view};

/// Root mean square norm by head, weighted, and rotary positions. `hidden`: (B, T, heads·D); `weights`: of the first `first` tokens and of the others,
/// (D,) each, in the same format; `angles`: cosine and sine, (T, D/2), f32. `None` where there is no kernel for them: on a CPU, or for odd widths.
pub(crate) fn norm_rope(
    hidden: &Tensor,
    (first, weights): (usize, [&Tensor; 2]),
    heads: usize,
    eps: f32,
    angles: (&Tensor, &Tensor),
) -> Option<Result<Tensor>> {
    let is_alike = weights.iter().all(|weight| weight.dtype() == hidden.dtype());
    let fits = hidden.device().is_cuda() && is_alike && weights.iter().all(|weight| weight.elem_count().is_multiple_of(2));
    match hidden.dtype() {
        DType::F32 if fits => Some(of::<f32>(hidden, (first, weights), heads, eps, angles)),
        DType::F16 if fits => Some(of::<f16>(hidden, (first, weights), heads, eps, angles)),
        DType::BF16 if fits => Some(of::<bf16>(hidden, (first, weights), heads, eps, angles)),
        _ => None,
    }
}

fn of<T: Element + CudaDType>(
    hidden: &Tensor,
    (first, [weight, other_weight]): (usize, [&Tensor; 2]),
    heads: usize,
    eps: f32,
    (cos, sin): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let (_, tokens, width) = hidden.dims3()?;
    let sides = NormRope { tokens, first, heads, width: weight.elem_count(), eps };
    if width != heads * sides.width
        || other_weight.dims() != weight.dims()
        || cos.dims() != [tokens, sides.width / 2]
        || sin.dims() != cos.dims()
    {
        let found = [hidden.dims(), weight.dims(), cos.dims(), sin.dims()];
        return Err(Error::msg(format!("no norm and turn of {heads} heads with {found:?}")));
    }
    let ordered = [hidden, weight, other_weight, cos, sin].map(in_order).into_iter().collect::<Result<Vec<_>>>()?;
    let Device::Cuda(device) = hidden.device() else { return Err(Error::msg("our CUDA kernels are for a GPU")) };
    let lying: Vec<_> = ordered.iter().map(Tensor::storage_and_layout).collect();
    let [(hidden, at_hidden), (weight, at_weight), (other, at_other), (cos, at_cos), (sin, at_sin)] = &*lying else {
        return Err(Error::msg("a norm and turn is of five tensors"));
    };
    let angles = (&view::<f32>(cos, at_cos)?, &view::<f32>(sin, at_sin)?);
    let weights = [&view(weight, at_weight)?, &view(other, at_other)?];
    let output = sides.run::<T>(&device.cuda_stream(), &view(hidden, at_hidden)?, weights, angles);
    let output = CudaStorage::wrap_cuda_slice(output.map_err(Error::wrap)?, device.clone());
    Ok(Tensor::from_storage(Storage::Cuda(output), ordered[0].shape().clone(), BackpropOp::none(), false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotary::joined_normed_and_turned;

    #[test]
    fn norms_and_turns_are_those_of_a_cpu() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (batch, tokens, first, heads, width) in
                [(1, 9, 4, 3, 128), (2, 5, 3, 2, 40), (1, 70, 70, 1, 6), (3, 1, 0, 5, 192)]
            {
                let draw = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu);
                // The second of two: read from where it lies.
                let hidden = draw(&[2, batch, tokens, heads * width])?.to_dtype(dtype)?;
                let weight = draw(&[width])?.to_dtype(dtype)?;
                let other = draw(&[width])?.to_dtype(dtype)?;
                let angles = draw(&[tokens, width / 2])?;
                let cos = angles.cos()?;
                let sin = angles.sin()?;
                let exact = |tensor: &Tensor| tensor.to_dtype(DType::F32);
                let weights = (first, [&exact(&weight)?, &exact(&other)?]);
                let expected = joined_normed_and_turned(&exact(&hidden.get(1)?)?, weights, heads, 1e-5, (&cos, &sin))?;
                let there = |tensor: &Tensor| tensor.to_device(&device);
                let turned = (&there(&cos)?, &there(&sin)?);
                let weights = (first, [&there(&weight)?, &there(&other)?]);
                let ours = norm_rope(&there(&hidden)?.get(1)?, weights, heads, 1e-5, turned).expect("a kernel")?;
                assert_eq!(ours.dims(), [batch, tokens, heads * width]);
                let off = (ours.to_dtype(DType::F32)?.to_device(&Device::Cpu)? - &expected)?.abs()?.max_all()?;
                let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?;
                // Rounded twice, and the turn adds what two values were rounded by.
                let rounding = match dtype {
                    DType::F32 => 1e-6,
                    DType::F16 => 2.0 * 2.0_f32.powi(-11),
                    _ => 2.0 * 2.0_f32.powi(-8),
                };
                let off = off.to_scalar::<f32>()? / largest;
                assert!(off <= rounding, "{dtype:?} {batch} {first} of {tokens} {heads} {width}: off by {off}");
            }
        }
        Ok(())
    }

    #[test]
    fn angles_of_other_tokens_are_refused() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &device);
        let angles = zeros(&[4, 4])?;
        let hidden = zeros(&[1, 5, 16])?;
        let weight = zeros(&[8])?;
        let weights = (5, [&weight; 2]);
        assert!(norm_rope(&hidden, weights, 2, 1e-5, (&angles, &angles)).expect("a kernel").is_err());
        assert!(norm_rope(&hidden.to_device(&Device::Cpu)?, weights, 2, 1e-5, (&angles, &angles)).is_none());
        Ok(())
    }
}
