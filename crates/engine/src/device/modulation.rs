//! How time changes the tokens of a flow, in one kernel each, as operations over candle's tensors.

use atelier_kernels::cuda::modulation::Rows;
use atelier_kernels::cuda::modules::Element;
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, DType, Error, Result, Tensor};
use half::{bf16, f16};

use super::own_kernels::run;

/// Layer norm without weights of its own, times a scale, plus a shift. `hidden`: (1, T, width); `changes`: scale and shift, (width,) each, of the
/// first `first` tokens and of the others. `None` where there is no kernel for them: on a CPU.
pub(super) fn modulate(hidden: &Tensor, first: usize, changes: [(&Tensor, &Tensor); 2], eps: f32) -> Option<Result<Tensor>> {
    let of = match hidden.dtype() {
        _ if !hidden.device().is_cuda() => return None,
        DType::F32 => modulated::<f32>,
        DType::F16 => modulated::<f16>,
        DType::BF16 => modulated::<bf16>,
        _ => return None,
    };
    Some(of(hidden, first, changes, eps))
}

/// `hidden` + gate · `change`, both (1, T, width); `gates`: (width,) each, of the first `first` tokens and of the others. `None` as of [`modulate`].
pub(super) fn add_gated(hidden: &Tensor, change: &Tensor, first: usize, gates: [&Tensor; 2]) -> Option<Result<Tensor>> {
    let of = match hidden.dtype() {
        _ if !hidden.device().is_cuda() => return None,
        DType::F32 => gated::<f32>,
        DType::F16 => gated::<f16>,
        DType::BF16 => gated::<bf16>,
        _ => return None,
    };
    Some(of(hidden, change, first, gates))
}

fn modulated<T: Element + CudaDType>(
    hidden: &Tensor,
    first: usize,
    [(scale, shift), (other_scale, other_shift)]: [(&Tensor, &Tensor); 2],
    eps: f32,
) -> Result<Tensor> {
    let rows = rows(hidden, first, &[scale, shift, other_scale, other_shift])?;
    let tensors = [hidden, scale, shift, other_scale, other_shift];
    run(tensors, hidden.shape().clone(), |device, [hidden, scale, shift, other_scale, other_shift]| {
        let changes = [(scale, shift), (other_scale, other_shift)];
        let output = rows.modulate::<T>(&device.cuda_stream(), hidden, changes, eps).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

fn gated<T: Element + CudaDType>(hidden: &Tensor, change: &Tensor, first: usize, gates: [&Tensor; 2]) -> Result<Tensor> {
    let rows = rows(hidden, first, &gates)?;
    if change.dims() != hidden.dims() {
        return Err(Error::msg(format!("{:?} cannot be added to {:?}", change.dims(), hidden.dims())));
    }
    run([hidden, change, gates[0], gates[1]], hidden.shape().clone(), |device, [hidden, change, gate, other_gate]| {
        let output = rows.add_gated::<T>(&device.cuda_stream(), (hidden, change), [gate, other_gate]).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

/// Of tokens that are changed by vectors of their width.
fn rows(hidden: &Tensor, first: usize, vectors: &[&Tensor]) -> Result<Rows> {
    let (_, _, width) = hidden.dims3()?;
    match vectors.iter().find(|vector| vector.dims() != [width]) {
        Some(vector) => Err(Error::msg(format!("tokens of {width} values cannot be changed by {:?}", vector.dims()))),
        None => Ok(Rows { first, width }),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;

    /// (x − mean)/√(variance + eps)·scale + shift, in f64.
    fn exact(part: &Tensor, (scale, shift): (&Tensor, &Tensor)) -> Result<Tensor> {
        let part = part.broadcast_sub(&part.mean_keepdim(D::Minus1)?)?;
        let deviation = (part.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        part.broadcast_div(&deviation)?.broadcast_mul(scale)?.broadcast_add(shift)
    }

    #[test]
    fn tokens_are_changed_as_on_a_cpu() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (tokens, first, width, around) in [(9, 4, 3072, 0.0), (5, 5, 40, 0.0), (6, 0, 7, 0.0), (300, 299, 64, 20.0)] {
                let draw = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype);
                let both = draw(&[2, 1, tokens, width])?.affine(1.0, around)?;
                let change = draw(&[1, tokens, width])?;
                let vectors = (0..4).map(|_| draw(&[width])).collect::<Result<Vec<_>>>()?;
                let there = vectors.iter().map(|vector| vector.to_device(&device)).collect::<Result<Vec<_>>>()?;
                // The second of two: read from where it lies.
                let hidden = both.to_device(&device)?.get(1)?;
                let changes = [(&there[0], &there[1]), (&there[2], &there[3])];
                let modulated = modulate(&hidden, first, changes, 1e-6).expect("a kernel")?;
                let gates = [&there[0], &there[2]];
                let gated = add_gated(&hidden, &change.to_device(&device)?, first, gates).expect("a kernel")?;

                let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
                let vectors = vectors.iter().map(wide).collect::<Result<Vec<_>>>()?;
                let before = wide(&both.get(1)?)?;
                let change = wide(&change)?;
                let mut normed = Vec::new();
                let mut added = Vec::new();
                for (from, count, of) in [(0, first, 0), (first, tokens - first, 2)] {
                    if count > 0 {
                        let part = before.narrow(1, from, count)?;
                        normed.push(exact(&part, (&vectors[of], &vectors[of + 1]))?);
                        added.push((part + change.narrow(1, from, count)?.broadcast_mul(&vectors[of])?)?);
                    }
                }
                for (ours, exact) in [(modulated, Tensor::cat(&normed, 1)?), (gated, Tensor::cat(&added, 1)?)] {
                    assert_eq!(ours.dims(), exact.dims());
                    let off = (wide(&ours.to_device(&Device::Cpu)?)? - &exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
                    let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
                    let rounding = match dtype {
                        DType::F32 => 3e-6,
                        DType::F16 => 2.0 * 2.0_f64.powi(-11),
                        _ => 2.0 * 2.0_f64.powi(-8),
                    };
                    assert!(off / largest <= rounding, "{dtype:?} {first} of {tokens}, {width}: off by {}", off / largest);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let hidden = Tensor::zeros((1, 3, 8), DType::F32, &device)?;
        let vector = Tensor::zeros(8, DType::F32, &device)?;
        let short = vector.narrow(0, 0, 4)?;
        assert!(modulate(&hidden, 1, [(&vector, &vector), (&vector, &short)], 1e-6).expect("a kernel").is_err());
        assert!(add_gated(&hidden, &hidden.narrow(1, 0, 2)?, 1, [&vector; 2]).expect("a kernel").is_err());
        assert!(add_gated(&hidden.to_device(&Device::Cpu)?, &hidden, 1, [&vector; 2]).is_none());
        Ok(())
    }
}
