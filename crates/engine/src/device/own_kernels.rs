//! Our CUDA kernels as operations over candle's tensors.

use atelier_kernels::cuda::attention::FlashAttention;
use atelier_kernels::cuda::modules::{Element, HalfElement};
use atelier_kernels::cuda::norm::GroupNorm;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::CudaView;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Error, Layout, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::memory_order::{as_it_lies, with_channels_first};

/// softmax(query·keyᵀ/√width)·value; `query`: (B, T, heads, width), `key` and `value`: (B, S, heads, width). `None` where there is no kernel for
/// them: on a CPU, in f32, or for heads wider than 160.
pub(super) fn attention(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Option<Result<Tensor>> {
    let width = query.dim(3).ok()?;
    let fits = query.device().is_cuda() && FlashAttention::takes_width(width) && key.dim(1).is_ok_and(|places| places > 0);
    match query.dtype() {
        DType::F16 if fits => Some(attended::<f16>(query, key, value, causal)),
        DType::BF16 if fits => Some(attended::<bf16>(query, key, value, causal)),
        _ => None,
    }
}

fn attended<T: HalfElement + CudaDType>(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Result<Tensor> {
    let (batch, tokens, heads, width) = query.dims4()?;
    let (_, places, ..) = key.dims4()?;
    if key.dims() != [batch, places, heads, width] || value.dims() != key.dims() {
        return Err(Error::msg(format!("no attention of {:?} over {:?} and {:?}", query.dims(), key.dims(), value.dims())));
    }
    let Device::Cuda(device) = query.device() else { return Err(Error::msg("our CUDA kernels are for a GPU")) };
    let queries = token_rows(query)?;
    let mut seen = [token_rows(key)?, token_rows(value)?];
    if seen[0].1 != seen[1].1 {
        seen = [(in_order(key)?, heads * width), (in_order(value)?, heads * width)];
    }
    let [keys, values] = seen;
    let sides = FlashAttention { batch, tokens, places, heads, width, causal, query_stride: queries.1, place_stride: keys.1 };
    let shape = query.shape();
    let lying = [&queries, &keys, &values].map(|(tensor, _)| tensor.storage_and_layout());
    let views = lying.iter().map(|(storage, layout)| from_first::<T>(storage, layout)).collect::<Result<Vec<_>>>()?;
    let output = sides.run::<T>(&device.cuda_stream(), &views[0], &views[1], &views[2]).map_err(Error::wrap)?;
    let output = CudaStorage::wrap_cuda_slice(output, device.clone());
    Ok(Tensor::from_storage(Storage::Cuda(output), shape.clone(), BackpropOp::none(), false))
}

/// (B, T, heads, width) as attention reads it, without a copy where tokens are equally far apart; and how many values that is.
fn token_rows(tensor: &Tensor) -> Result<(Tensor, usize)> {
    /// Of an address and a distance, in 16 bits each: 16 bytes.
    const TOGETHER: usize = 8;
    let (batch, tokens, heads, width) = tensor.dims4()?;
    if let [image, token, head, 1] = *tensor.layout().stride()
        && (heads == 1 || head == width)
        && (batch == 1 || image == tokens * token)
        && token >= heads * width
        && token.is_multiple_of(TOGETHER)
        && tensor.layout().start_offset().is_multiple_of(TOGETHER)
    {
        return Ok((tensor.clone(), token));
    }
    Ok((in_order(tensor)?, heads * width))
}

/// All of a tensor's memory from its first value on.
fn from_first<'a, T: CudaDType>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Storage::Cuda(storage) = storage else { return Err(Error::msg("a kernel's tensors have to be on the GPU together")) };
    Ok(storage.as_cuda_slice::<T>()?.slice(layout.start_offset()..))
}

/// `hidden`: (B, channels, ...); `weight`, `bias`: (channels,), in the same format. `norm` says how it lies, and so does what comes out. `None` where there is no kernel
/// for them: on a CPU.
pub(super) fn group_norm(norm: GroupNorm, hidden: &Tensor, weight: &Tensor, bias: &Tensor) -> Option<Result<Tensor>> {
    let fits = hidden.device().is_cuda() && weight.dtype() == hidden.dtype();
    match hidden.dtype() {
        DType::F32 if fits => Some(normed::<f32>(norm, hidden, weight, bias)),
        DType::F16 if fits => Some(normed::<f16>(norm, hidden, weight, bias)),
        DType::BF16 if fits => Some(normed::<bf16>(norm, hidden, weight, bias)),
        _ => None,
    }
}

fn normed<T: Element + CudaDType>(norm: GroupNorm, hidden: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if hidden.dim(1)? != weight.dim(0)? {
        return Err(Error::msg(format!("a group norm of {:?} channels got {:?}", weight.dims(), hidden.dims())));
    }
    let places = hidden.dims()[2..].iter().product();
    let lying = as_it_lies(hidden)?;
    let output = run([&lying, weight, bias], lying.shape(), |device, [hidden, weight, bias]| {
        let output = norm.run::<T>(&device.cuda_stream(), hidden, (weight, bias), places).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })?;
    if norm.channels_last { with_channels_first(&output) } else { Ok(output) }
}

/// Whether our kernels take its values.
pub(super) fn has_kernels(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() && matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// As a kernel reads it: in order, from an address that is a multiple of 16 bytes.
pub(super) fn in_order(tensor: &Tensor) -> Result<Tensor> {
    const ALIGNED_BYTES: usize = 16;
    let tensor = tensor.contiguous()?;
    let first_byte = tensor.layout().start_offset() * tensor.dtype().size_in_bytes();
    if first_byte.is_multiple_of(ALIGNED_BYTES) { Ok(tensor) } else { tensor.force_contiguous() }
}

/// The values of a tensor in order.
pub(super) fn view<'a, T: CudaDType>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let Storage::Cuda(storage) = storage else { return Err(Error::msg("a kernel's tensors have to be on the GPU together")) };
    let first = layout.start_offset();
    Ok(storage.as_cuda_slice::<T>()?.slice(first..first + layout.shape().elem_count()))
}

/// A kernel over some tensors' values in order, with a result of this shape.
pub(super) fn run<T: CudaDType, const COUNT: usize>(
    tensors: [&Tensor; COUNT],
    shape: &Shape,
    kernel: impl FnOnce(&candle_core::CudaDevice, [&CudaView<'_, T>; COUNT]) -> Result<CudaStorage>,
) -> Result<Tensor> {
    let [output] = run_all(tensors, shape, |device, views| Ok([kernel(device, views)?]))?;
    Ok(output)
}

/// The same with several results, all of this shape.
pub(super) fn run_all<T: CudaDType, const COUNT: usize, const RESULTS: usize>(
    tensors: [&Tensor; COUNT],
    shape: &Shape,
    kernel: impl FnOnce(&candle_core::CudaDevice, [&CudaView<'_, T>; COUNT]) -> Result<[CudaStorage; RESULTS]>,
) -> Result<[Tensor; RESULTS]> {
    let ordered = tensors.map(in_order).into_iter().collect::<Result<Vec<_>>>()?;
    let Some(Device::Cuda(device)) = ordered.first().map(Tensor::device) else {
        return Err(Error::msg("our CUDA kernels are for a GPU"));
    };
    let lying: Vec<_> = ordered.iter().map(Tensor::storage_and_layout).collect();
    let views = lying.iter().map(|(storage, layout)| view::<T>(storage, layout)).collect::<Result<Vec<_>>>()?;
    let outputs = kernel(device, std::array::from_fn(|place| &views[place]))?;
    Ok(outputs.map(|output| Tensor::from_storage(Storage::Cuda(output), shape.clone(), BackpropOp::none(), false)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::device::{is_channels_last, to_channels_last};

    fn on_gpu() -> Result<Device> {
        crate::device::open().map_err(Error::wrap)
    }

    /// As it is after rounding to `dtype`: what the kernel and its twin both start from.
    pub(crate) fn drawn(shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)
    }

    pub(crate) fn doubles(tensor: &Tensor) -> Result<Vec<f64>> {
        tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
    }

    /// The furthest that one is off, in units of the largest there is.
    pub(crate) fn furthest(ours: &[f64], exact: &[f64]) -> f64 {
        assert_eq!(ours.len(), exact.len());
        let largest = exact.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
        ours.iter()
            .zip(exact)
            .map(|(ours, exact)| (ours - exact).abs())
            .fold(0.0, |a: f64, b| if b.is_nan() { b } else { a.max(b) })
            / largest
    }

    /// Half a unit in the last place, and the same again for the weights of the second product.
    fn rounding(dtype: DType) -> f64 {
        match dtype {
            DType::F32 => 1e-6,
            DType::F16 => 2.0 * 2.0_f64.powi(-11),
            _ => 2.0 * 2.0_f64.powi(-8),
        }
    }

    fn exact_attention(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Result<Vec<f64>> {
        let (batch, tokens, heads, width) = query.dims4()?;
        let places = key.dim(1)?;
        let query = doubles(query)?;
        let key = doubles(key)?;
        let value = doubles(value)?;
        let mut output = vec![0.0; query.len()];
        for (image, token, head) in
            (0..batch).flat_map(|image| (0..tokens).flat_map(move |token| (0..heads).map(move |head| (image, token, head))))
        {
            let row = |rows: usize, place: usize| ((image * rows + place) * heads + head) * width;
            let seen = if causal { places.min(token + 1) } else { places };
            let query = &query[row(tokens, token)..][..width];
            let mut scores: Vec<f64> = Vec::with_capacity(seen);
            for place in 0..seen {
                let products = query.iter().zip(&key[row(places, place)..][..width]).map(|(query, key)| query * key);
                scores.push(products.sum::<f64>() / (width as f64).sqrt());
            }
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let all: f64 = weights.iter().sum();
            for x in 0..width {
                let sum: f64 = weights.iter().zip(0..).map(|(weight, place)| weight * value[row(places, place) + x]).sum();
                output[row(tokens, token) + x] = sum / all;
            }
        }
        Ok(output)
    }

    #[test]
    fn attention_is_that_of_float64() -> Result<()> {
        let device = on_gpu()?;
        let cases = [
            (1, 100, 77, 2, 64, false),
            (2, 64, 64, 2, 40, false),
            (1, 130, 130, 1, 80, false),
            (1, 70, 33, 1, 128, false),
            (1, 65, 65, 1, 160, true),
            (1, 77, 77, 2, 24, true),
            (2, 1, 1, 3, 8, true),
            (1, 17, 200, 1, 96, false),
            // Several blocks of queries, and pieces that end within one, at its end, and behind it.
            (1, 200, 128, 1, 16, false),
            (1, 140, 129, 1, 64, true),
            (1, 129, 300, 1, 128, true),
            (2, 66, 145, 2, 32, false),
        ];
        for dtype in [DType::F16, DType::BF16] {
            for (batch, tokens, places, heads, width, causal) in cases {
                let query = drawn(&[batch, tokens, heads, width], dtype)?;
                let key = drawn(&[batch, places, heads, width], dtype)?;
                let value = drawn(&[batch, places, heads, width], dtype)?;
                let on = |tensor: &Tensor| tensor.to_device(&device);
                let ours = attention(&on(&query)?, &on(&key)?, &on(&value)?, causal).expect("a kernel")?;
                let off = furthest(&doubles(&ours)?, &exact_attention(&query, &key, &value, causal)?);
                assert!(off <= rounding(dtype), "{dtype:?} {batch} {tokens} {places} {heads} {width} {causal}: off by {off}");
            }
        }
        Ok(())
    }

    /// Weights are relative to a score that is left behind when scores grow; a row's bits are its own all the same.
    #[test]
    fn scores_that_grow_from_piece_to_piece_are_weighed_anew() -> Result<()> {
        let device = on_gpu()?;
        for (places, width) in [(300, 40), (200, 128), (200, 80)] {
            let growing: Vec<f32> = (0..places).map(|place| place as f32 / 20.0).collect();
            let growing = Tensor::from_vec(growing, (1, places, 1, 1), &Device::Cpu)?;
            let dtype = DType::F16;
            let query = drawn(&[1, 40, 1, width], dtype)?;
            let key = drawn(&[1, places, 1, width], DType::F32)?.broadcast_mul(&growing)?.to_dtype(dtype)?;
            let value = drawn(&[1, places, 1, width], dtype)?;
            let [query_there, key_there, value_there] = [&query, &key, &value].map(|tensor| tensor.to_device(&device));
            let query_there = query_there?;
            let key_there = key_there?;
            let value_there = value_there?;
            let ours = attention(&query_there, &key_there, &value_there, false).expect("a kernel")?;
            let off = furthest(&doubles(&ours)?, &exact_attention(&query, &key, &value, false)?);
            assert!(off <= rounding(dtype), "{places} {width}: off by {off}");
            for token in [0, 7, 39] {
                let alone = attention(&query_there.narrow(1, token, 1)?, &key_there, &value_there, false).expect("a kernel")?;
                assert_eq!(doubles(&alone)?, doubles(&ours.narrow(1, token, 1)?.contiguous()?)?, "{places} {width} {token}");
            }
        }
        Ok(())
    }

    /// As keys that overflowed would be: a row begins with places that nothing is seen of.
    #[test]
    fn rows_that_begin_with_infinite_scores_see_what_follows() -> Result<()> {
        let device = on_gpu()?;
        let places = 150;
        let width = 64;
        let query = Tensor::ones((1, 20, 1, width), DType::F16, &Device::Cpu)?;
        let infinite = Tensor::full(f32::NEG_INFINITY, (1, 70, 1, width), &Device::Cpu)?.to_dtype(DType::F16)?;
        let key = Tensor::cat(&[&infinite, &drawn(&[1, places - 70, 1, width], DType::F16)?], 1)?;
        let value = drawn(&[1, places, 1, width], DType::F16)?;
        let on = |tensor: &Tensor| tensor.to_device(&device);
        let ours = attention(&on(&query)?, &on(&key)?, &on(&value)?, false).expect("a kernel")?;
        let off = furthest(&doubles(&ours)?, &exact_attention(&query, &key, &value, false)?);
        assert!(off <= rounding(DType::F16), "off by {off}");
        Ok(())
    }

    #[test]
    fn parts_of_larger_tensors_are_read_from_where_they_lie() -> Result<()> {
        let device = on_gpu()?;
        let both = drawn(&[3, 20, 1, 16], DType::F16)?;
        // The second image's values begin in the middle of the memory; the third's tokens from the second on, at no multiple of 16 bytes.
        let odd = drawn(&[1 + 20 * 16], DType::F16)?;
        let query = both.narrow(0, 1, 1)?;
        let key = both.narrow(0, 2, 1)?.narrow(1, 1, 19)?;
        let value = odd.narrow(0, 1, 19 * 16)?.reshape((1, 19, 1, 16))?;
        let both_there = both.to_device(&device)?;
        let odd_there = odd.to_device(&device)?;
        let value_there = odd_there.narrow(0, 1, 19 * 16)?.reshape((1, 19, 1, 16))?;
        let key_there = both_there.narrow(0, 2, 1)?.narrow(1, 1, 19)?;
        let ours = attention(&both_there.narrow(0, 1, 1)?, &key_there, &value_there, false).expect("a kernel")?;
        let off = furthest(&doubles(&ours)?, &exact_attention(&query, &key, &value, false)?);
        assert!(off <= rounding(DType::F16), "off by {off}");
        Ok(())
    }

    #[test]
    fn queries_keys_and_values_may_lie_between_each_other() -> Result<()> {
        let device = on_gpu()?;
        for (batch, tokens, heads, width) in [(2, 40, 2, 24), (1, 65, 1, 80), (3, 1, 2, 8)] {
            let joint = drawn(&[batch, tokens, 3, heads, width], DType::F16)?;
            let joint_there = joint.to_device(&device)?;
            let of = |joint: &Tensor, place: usize| joint.narrow(2, place, 1)?.squeeze(2);
            let parts = [of(&joint, 0)?, of(&joint, 1)?, of(&joint, 2)?];
            let there = [of(&joint_there, 0)?, of(&joint_there, 1)?, of(&joint_there, 2)?];
            let exact = exact_attention(&parts[0], &parts[1], &parts[2], false)?;
            // The last one: values that lie by themselves.
            for value in [there[2].clone(), there[2].force_contiguous()?] {
                let ours = attention(&there[0], &there[1], &value, false).expect("a kernel")?;
                let off = furthest(&doubles(&ours)?, &exact);
                assert!(off <= rounding(DType::F16), "{batch} {tokens} {heads} {width}: off by {off}");
            }
        }
        Ok(())
    }

    #[test]
    fn attention_that_there_is_no_kernel_for_is_left_to_others() -> Result<()> {
        let device = on_gpu()?;
        for (dtype, width) in [(DType::F32, 64), (DType::F16, 12), (DType::F16, 512)] {
            let tensor = Tensor::zeros((1, 4, 1, width), dtype, &device)?;
            assert!(attention(&tensor, &tensor, &tensor, false).is_none(), "{dtype:?} {width}");
        }
        Ok(())
    }

    fn exact_norm(norm: GroupNorm, hidden: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Vec<f64>> {
        let channels = hidden.dim(1)?;
        let places: usize = hidden.dims()[2..].iter().product();
        let mut values = doubles(hidden)?;
        let weight = doubles(weight)?;
        let bias = doubles(bias)?;
        let in_group = channels / norm.groups;
        for (group, part) in values.chunks_mut(in_group * places).enumerate() {
            let mean = part.iter().sum::<f64>() / part.len() as f64;
            let variance = part.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / part.len() as f64;
            for (at, value) in part.iter_mut().enumerate() {
                let channel = group % norm.groups * in_group + at / places;
                let normed = (*value - mean) / (variance + f64::from(norm.eps)).sqrt() * weight[channel] + bias[channel];
                *value = if norm.silu { normed / (1.0 + (-normed).exp()) } else { normed };
            }
        }
        Ok(values)
    }

    #[test]
    fn large_images_are_normed_in_parts() -> Result<()> {
        let device = on_gpu()?;
        let hidden = (drawn(&[1, 32, 360, 370], DType::F16)? + 3.0)?;
        let weight = drawn(&[32], DType::F16)?;
        let norm = GroupNorm { groups: 8, eps: 1e-5, silu: true, channels_last: false };
        let exact = exact_norm(norm, &hidden, &weight, &weight)?;
        let hidden = hidden.to_device(&device)?;
        let weight = weight.to_device(&device)?;
        for there in [to_channels_last(&hidden)?, hidden] {
            let norm = GroupNorm { channels_last: is_channels_last(&there), ..norm };
            let ours = group_norm(norm, &there, &weight, &weight).expect("a kernel")?;
            let off = furthest(&doubles(&ours)?, &exact);
            assert!(off <= rounding(DType::F16), "{norm:?}: off by {off}");
        }
        Ok(())
    }

    #[test]
    fn group_norm_is_that_of_float64() -> Result<()> {
        let device = on_gpu()?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (batch, channels, groups, side, around) in
                [(2, 320, 32, 16, 0.0), (1, 64, 8, 7, 0.0), (3, 4, 4, 1, 0.0), (1, 32, 2, 9, 30.0), (2, 24, 8, 5, 3.0)]
            {
                for silu in [false, true] {
                    let hidden = (drawn(&[batch, channels, side, side], dtype)? + around)?;
                    let weight = drawn(&[channels], dtype)?;
                    let bias = drawn(&[channels], dtype)?;
                    let norm = GroupNorm { groups, eps: 1e-5, silu, channels_last: false };
                    let exact = exact_norm(norm, &hidden, &weight, &bias)?;
                    let on = |tensor: &Tensor| tensor.to_device(&device);
                    let hidden = on(&hidden)?;
                    for hidden in [to_channels_last(&hidden)?, hidden] {
                        let norm = GroupNorm { channels_last: is_channels_last(&hidden), ..norm };
                        let ours = group_norm(norm, &hidden, &on(&weight)?, &on(&bias)?).expect("a kernel")?;
                        assert_eq!(is_channels_last(&ours), is_channels_last(&hidden));
                        let off = furthest(&doubles(&ours)?, &exact);
                        assert!(
                            off <= rounding(dtype).max(3e-6),
                            "{dtype:?} {channels} in {groups}, {side}, silu {silu}: off by {off}"
                        );
                    }
                }
            }
        }
        Ok(())
    }
}
