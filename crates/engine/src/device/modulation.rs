//! Layer norms, and how time changes the tokens of a flow, in one kernel each, as operations over candle's tensors.

use atelier_kernels::cuda::modulation::{Rows, layer_norm as normed_of};
use atelier_kernels::cuda::modules::Element;
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaStorage, D, DType, Error, Result, Tensor};
use half::{bf16, f16};

use super::own_kernels::{has_kernels, run, run_all};

/// Layer norm without weights of its own, times a scale, plus a shift. `hidden`: (1, T, width); `ends`: where the second of three parts of the tokens
/// begins, and the third; `changes`: scale and shift of each, (width,). `None` where there is no kernel for them: on a CPU.
pub(crate) fn modulate(
    hidden: &Tensor,
    ends: [usize; 2],
    changes: [(&Tensor, &Tensor); 3],
    eps: f32,
) -> Option<Result<Tensor>> {
    let of = match kernels_of(hidden)? {
        DType::F16 => modulated::<f16>,
        DType::BF16 => modulated::<bf16>,
        _ => modulated::<f32>,
    };
    Some(of(hidden, ends, changes, eps))
}

/// `hidden` + gate · `change`, both (1, T, width); `gates`: of each part, (width,). `None` as of [`modulate`].
pub(crate) fn add_gated(hidden: &Tensor, change: &Tensor, ends: [usize; 2], gates: [&Tensor; 3]) -> Option<Result<Tensor>> {
    let of = match kernels_of(hidden)? {
        DType::F16 => gated::<f16>,
        DType::BF16 => gated::<bf16>,
        _ => gated::<f32>,
    };
    Some(of(hidden, change, ends, gates))
}

/// [`add_gated`], and [`modulate`] of that. `None` as of [`modulate`].
pub(crate) fn add_gated_modulate(
    both: (&Tensor, &Tensor),
    ends: [usize; 2],
    gates: [&Tensor; 3],
    changes: [(&Tensor, &Tensor); 3],
    eps: f32,
) -> Option<Result<[Tensor; 2]>> {
    let of = match kernels_of(both.0)? {
        DType::F16 => gated_modulated::<f16>,
        DType::BF16 => gated_modulated::<bf16>,
        _ => gated_modulated::<f32>,
    };
    Some(of(both, ends, gates, changes, eps))
}

/// Layer norm over the last side of `hidden`, (..., width); `weight`, `bias`: (width,), in the same format. `None` where there is no kernel for them: on a
/// CPU, or of several formats.
pub(crate) fn layer_norm(hidden: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Option<Result<Tensor>> {
    let is_alike =
        |vector: &Tensor| vector.dtype() == hidden.dtype() && vector.elem_count() == hidden.dim(D::Minus1).unwrap_or(0);
    let fits = has_kernels(hidden) && is_alike(weight) && is_alike(bias);
    let of = match hidden.dtype() {
        DType::F16 => normed::<f16>,
        DType::BF16 => normed::<bf16>,
        _ => normed::<f32>,
    };
    fits.then(|| of(hidden, weight, bias, eps))
}

fn normed<T: Element + CudaDType>(hidden: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    run([hidden, weight, bias], hidden.shape(), |device, [hidden, weight, bias]| {
        let output = normed_of::<T>(&device.cuda_stream(), hidden, weight, bias, eps).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

/// The format of values that there are kernels for: of one batch, whose rows are its tokens.
fn kernels_of(hidden: &Tensor) -> Option<DType> {
    (has_kernels(hidden) && hidden.dim(0).is_ok_and(|batch| batch == 1)).then(|| hidden.dtype())
}

fn modulated<T: Element + CudaDType>(
    hidden: &Tensor,
    ends: [usize; 2],
    changes: [(&Tensor, &Tensor); 3],
    eps: f32,
) -> Result<Tensor> {
    let [(scale, shift), (second_scale, second_shift), (third_scale, third_shift)] = changes;
    let vectors = [scale, shift, second_scale, second_shift, third_scale, third_shift];
    let rows = rows(hidden, ends, &vectors)?;
    let tensors = [hidden, scale, shift, second_scale, second_shift, third_scale, third_shift];
    run(tensors, hidden.shape(), |device, [hidden, vectors @ ..]| {
        let output = rows.modulate::<T>(&device.cuda_stream(), hidden, pairs(&vectors), eps).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

fn gated<T: Element + CudaDType>(hidden: &Tensor, change: &Tensor, ends: [usize; 2], gates: [&Tensor; 3]) -> Result<Tensor> {
    let rows = rows(hidden, ends, &gates)?;
    check_change(hidden, change)?;
    let [gate, second_gate, third_gate] = gates;
    run([hidden, change, gate, second_gate, third_gate], hidden.shape(), |device, [hidden, change, gates @ ..]| {
        let output = rows.add_gated::<T>(&device.cuda_stream(), (hidden, change), gates).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

fn gated_modulated<T: Element + CudaDType>(
    (hidden, change): (&Tensor, &Tensor),
    ends: [usize; 2],
    gates: [&Tensor; 3],
    changes: [(&Tensor, &Tensor); 3],
    eps: f32,
) -> Result<[Tensor; 2]> {
    let [(scale, shift), (second_scale, second_shift), (third_scale, third_shift)] = changes;
    let [gate, second_gate, third_gate] = gates;
    let vectors = [gate, second_gate, third_gate, scale, shift, second_scale, second_shift, third_scale, third_shift];
    let rows = rows(hidden, ends, &vectors)?;
    check_change(hidden, change)?;
    let tensors =
        [hidden, change, gate, second_gate, third_gate, scale, shift, second_scale, second_shift, third_scale, third_shift];
    run_all(tensors, hidden.shape(), |device, [hidden, change, gate, second_gate, third_gate, vectors @ ..]| {
        let gates = [gate, second_gate, third_gate];
        let stream = device.cuda_stream();
        let outputs = rows.add_gated_modulate::<T>(&stream, (hidden, change), gates, pairs(&vectors), eps);
        Ok(outputs.map_err(Error::wrap)?.map(|output| CudaStorage::wrap_cuda_slice(output, device.clone())))
    })
}

fn pairs<'a, T>(vectors: &[&'a T; 6]) -> [(&'a T, &'a T); 3] {
    let [scale, shift, second_scale, second_shift, third_scale, third_shift] = vectors;
    [(scale, shift), (second_scale, second_shift), (third_scale, third_shift)]
}

fn check_change(hidden: &Tensor, change: &Tensor) -> Result<()> {
    if change.dims() == hidden.dims() {
        return Ok(());
    }
    Err(Error::msg(format!("{:?} cannot be added to {:?}", change.dims(), hidden.dims())))
}

/// Of tokens that are changed by vectors of their width.
fn rows(hidden: &Tensor, ends: [usize; 2], vectors: &[&Tensor]) -> Result<Rows> {
    let (_, _, width) = hidden.dims3()?;
    match vectors.iter().find(|vector| vector.dims() != [width]) {
        Some(vector) => Err(Error::msg(format!("tokens of {width} values cannot be changed by {:?}", vector.dims()))),
        None => Ok(Rows { ends, width }),
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
            for (tokens, ends, width, around) in [
                (9, [2, 4], 3072, 0.0),
                (5, [5, 5], 40, 0.0),
                (6, [0, 3], 7, 0.0),
                (6, [0, 6], 520, 0.0),
                (300, [100, 299], 64, 20.0),
                (4, [1, 3], 1301, 0.0),
            ] {
                let draw = |shape: &[usize]| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype);
                let both = draw(&[2, 1, tokens, width])?.affine(1.0, around)?;
                let change = draw(&[1, tokens, width])?;
                let vectors = (0..6).map(|_| draw(&[width])).collect::<Result<Vec<_>>>()?;
                let there = vectors.iter().map(|vector| vector.to_device(&device)).collect::<Result<Vec<_>>>()?;
                // The second of two: read from where it lies.
                let hidden = both.to_device(&device)?.get(1)?;
                let changes = [(&there[0], &there[1]), (&there[2], &there[3]), (&there[4], &there[5])];
                let modulated = modulate(&hidden, ends, changes, 1e-6).expect("a kernel")?;
                let gates = [&there[0], &there[2], &there[4]];
                let change_there = change.to_device(&device)?;
                let gated = add_gated(&hidden, &change_there, ends, gates).expect("a kernel")?;
                let together = add_gated_modulate((&hidden, &change_there), ends, gates, changes, 1e-6).expect("a kernel")?;
                let one_by_one = modulate(&gated, ends, changes, 1e-6).expect("a kernel")?;
                for (together, alone) in together.iter().zip([&gated, &one_by_one]) {
                    let bits = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
                    assert_eq!(bits(together)?, bits(alone)?, "{dtype:?} {ends:?} of {tokens}, {width}");
                }

                let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
                let vectors = vectors.iter().map(wide).collect::<Result<Vec<_>>>()?;
                let before = wide(&both.get(1)?)?;
                let change = wide(&change)?;
                let mut normed = Vec::new();
                let mut added = Vec::new();
                for (from, to, of) in [(0, ends[0], 0), (ends[0], ends[1], 2), (ends[1], tokens, 4)] {
                    if to > from {
                        let part = before.narrow(1, from, to - from)?;
                        normed.push(exact(&part, (&vectors[of], &vectors[of + 1]))?);
                        added.push((part + change.narrow(1, from, to - from)?.broadcast_mul(&vectors[of])?)?);
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
                    assert!(off / largest <= rounding, "{dtype:?} {ends:?} of {tokens}, {width}: off by {}", off / largest);
                }
            }
        }
        Ok(())
    }

    #[test]
    fn layer_norms_are_those_of_float64() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        for (dtype, rounding) in [(DType::F32, 3e-6), (DType::F16, 2.0_f64.powi(-10)), (DType::BF16, 2.0_f64.powi(-7))] {
            // A warp's rows and a block's, whole packs of 16 bytes and none, and rows that fill no block.
            for (rows, width) in [(19, 320), (2, 7), (9, 1301), (3, 2048)] {
                let draw = |shape: &[usize]| Tensor::randn(1.0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype);
                let hidden = draw(&[2, rows, width])?;
                let weight = draw(&[width])?;
                let bias = draw(&[width])?;
                let [weight_there, bias_there] = [weight.to_device(&device)?, bias.to_device(&device)?];
                let ours = layer_norm(&hidden.to_device(&device)?, &weight_there, &bias_there, 1e-6).expect("a kernel")?;
                let wide = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64);
                let exact = exact(&wide(&hidden)?, (&wide(&weight)?, &wide(&bias)?))?;
                let off = (wide(&ours)? - &exact)?.abs()?.max_all()?.to_scalar::<f64>()?;
                let largest = exact.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(off / largest <= rounding, "{dtype:?} {rows} {width}: off by {}", off / largest);
            }
        }
        let vector = Tensor::zeros(8, DType::F16, &device)?;
        let hidden = Tensor::zeros((1, 8), DType::F32, &device)?;
        assert!(layer_norm(&hidden, &vector, &vector, 1e-6).is_none(), "several formats");
        assert!(layer_norm(&vector.narrow(0, 0, 4)?, &vector, &vector, 1e-6).is_none(), "other widths");
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_refused() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let hidden = Tensor::zeros((1, 3, 8), DType::F32, &device)?;
        let vector = Tensor::zeros(8, DType::F32, &device)?;
        let short = vector.narrow(0, 0, 4)?;
        let changes = [(&vector, &vector), (&vector, &short), (&vector, &vector)];
        assert!(modulate(&hidden, [1, 2], changes, 1e-6).expect("a kernel").is_err());
        let fewer = hidden.narrow(1, 0, 2)?;
        assert!(add_gated(&hidden, &fewer, [1, 2], [&vector; 3]).expect("a kernel").is_err());
        let fitting = [(&vector, &vector); 3];
        assert!(add_gated_modulate((&hidden, &fewer), [1, 2], [&vector; 3], fitting, 1e-6).expect("a kernel").is_err());
        assert!(add_gated_modulate((&hidden, &hidden), [1, 2], [&short; 3], fitting, 1e-6).expect("a kernel").is_err());
        let two = hidden.repeat((2, 1, 1))?;
        assert!(add_gated(&two, &two, [1, 2], [&vector; 3]).is_none(), "the parts of one image");
        assert!(add_gated(&hidden.to_device(&Device::Cpu)?, &hidden, [1, 2], [&vector; 3]).is_none());
        Ok(())
    }
}
