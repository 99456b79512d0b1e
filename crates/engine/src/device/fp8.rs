//! A GPU's own 8-bit values: rounding, products and what follows them, by the kernels of `atelier_kernels::cuda`.

use atelier_kernels::cuda::fp8::{Finish, round_tokens, widen};
use atelier_kernels::cuda::modules::Element;
use atelier_kernels::cuda::{Fp8Gemm, Sides};
use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Shape, Storage, Tensor};
use half::{bf16, f16};

use super::Fp8Device;

/// What cuBLASLt asks of addresses and widths.
const ALIGNED: usize = 16;

pub(super) struct Gpu {
    device: CudaDevice,
    gemm: Fp8Gemm,
}

impl Gpu {
    pub(super) fn open(device: &CudaDevice) -> Result<Self> {
        let gemm = Fp8Gemm::new(&device.cuda_stream()).map_err(Error::wrap)?;
        Ok(Self { device: device.clone(), gemm })
    }
}

impl Fp8Device for Gpu {
    fn round_tokens(&self, input: &Tensor) -> Result<(Tensor, Tensor)> {
        match input.dtype() {
            DType::F32 => rounded::<f32>(&self.device, input),
            DType::F16 => rounded::<f16>(&self.device, input),
            DType::BF16 => rounded::<bf16>(&self.device, input),
            other => Err(not_whole(other)),
        }
    }

    fn multiply(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (columns, depth) = input.dims2()?;
        let (rows, weight_depth) = weight.dims2()?;
        let (inputs, input_layout) = input.storage_and_layout();
        let (weights, weight_layout) = weight.storage_and_layout();
        let (Some((first_input, _)), Some((first_weight, _))) =
            (input_layout.contiguous_offsets(), weight_layout.contiguous_offsets())
        else {
            return Err(Error::msg("an 8-bit product is of values in order"));
        };
        let (Storage::Cuda(inputs), Storage::Cuda(weights)) = (&*inputs, &*weights) else { return Err(elsewhere()) };
        let (CudaStorageSlice::F8E4M3(inputs), CudaStorageSlice::F8E4M3(weights)) = (&inputs.slice, &weights.slice) else {
            return Err(Error::msg("an 8-bit product is of e4m3 values"));
        };
        if depth != weight_depth || [depth, rows, first_input, first_weight].iter().any(|number| number % ALIGNED != 0) {
            return Err(Error::msg(format!(
                "no 8-bit product of {:?} and {:?}: widths must be equal and multiples of {ALIGNED}",
                input.dims(),
                weight.dims()
            )));
        }
        let sides = Sides { rows, columns, depth };
        let product = self.gemm.multiply(&weights.slice(first_weight..), &inputs.slice(first_input..), sides);
        Ok(tensor(CudaStorage::wrap_cuda_slice(product.map_err(Error::wrap)?, self.device.clone()), (columns, rows)))
    }

    fn finish(&self, product: &Tensor, token_scales: &Tensor, weight_scales: &Tensor, bias: &Tensor) -> Result<Tensor> {
        match bias.dtype() {
            DType::F32 => finished::<f32>(&self.device, product, token_scales, weight_scales, bias),
            DType::F16 => finished::<f16>(&self.device, product, token_scales, weight_scales, bias),
            DType::BF16 => finished::<bf16>(&self.device, product, token_scales, weight_scales, bias),
            other => Err(not_whole(other)),
        }
    }
}

/// 8-bit values made whole, in order.
pub(super) fn widened(device: &CudaDevice, bits: &Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F32 => widened_to::<f32>(device, bits),
        DType::F16 => widened_to::<f16>(device, bits),
        DType::BF16 => widened_to::<bf16>(device, bits),
        other => Err(not_whole(other)),
    }
}

fn widened_to<T: Element + CudaDType>(device: &CudaDevice, bits: &Tensor) -> Result<Tensor> {
    let (storage, layout) = bits.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Err(elsewhere()) };
    let (CudaStorageSlice::F8E4M3(values), Some((from, to))) = (&storage.slice, layout.contiguous_offsets()) else {
        return Err(Error::msg("what is made whole are e4m3 values in order"));
    };
    let whole = widen::<_, T>(&device.cuda_stream(), &values.slice(from..to)).map_err(Error::wrap)?;
    Ok(tensor(CudaStorage::wrap_cuda_slice(whole, device.clone()), bits.shape().clone()))
}

fn rounded<T: Element + CudaDType>(device: &CudaDevice, input: &Tensor) -> Result<(Tensor, Tensor)> {
    let (tokens, width) = input.dims2()?;
    let input = input.contiguous()?;
    let (storage, layout) = input.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Err(elsewhere()) };
    let first = layout.start_offset();
    let values = storage.as_cuda_slice::<T>()?.slice(first..first + tokens * width);
    let (bits, scales) = round_tokens(&device.cuda_stream(), &values, width).map_err(Error::wrap)?;
    let bits = CudaStorage { slice: CudaStorageSlice::F8E4M3(bits), device: device.clone() };
    Ok((tensor(bits, (tokens, width)), tensor(CudaStorage::wrap_cuda_slice(scales, device.clone()), tokens)))
}

fn finished<T: Element + CudaDType>(
    device: &CudaDevice,
    product: &Tensor,
    token_scales: &Tensor,
    weight_scales: &Tensor,
    bias: &Tensor,
) -> Result<Tensor> {
    let inputs = [product, token_scales, weight_scales, bias];
    if inputs.iter().any(|input| !input.is_contiguous()) {
        return Err(Error::msg("an 8-bit product is finished over values in order"));
    }
    let [(product_storage, at_product), (token_storage, at_token), (weight_storage, at_weight), (bias_storage, at_bias)] =
        inputs.map(Tensor::storage_and_layout);
    let (Storage::Cuda(products), Storage::Cuda(tokens), Storage::Cuda(weights), Storage::Cuda(biases)) =
        (&*product_storage, &*token_storage, &*weight_storage, &*bias_storage)
    else {
        return Err(elsewhere());
    };
    let part = |layout: &candle_core::Layout| layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    let finish = Finish {
        token_scales: &tokens.as_cuda_slice::<f32>()?.slice(part(at_token)),
        weight_scales: &weights.as_cuda_slice::<f32>()?.slice(part(at_weight)),
        bias: &biases.as_cuda_slice::<T>()?.slice(part(at_bias)),
    };
    let products = products.as_cuda_slice::<bf16>()?.slice(part(at_product));
    let output = finish.apply(&device.cuda_stream(), &products).map_err(Error::wrap)?;
    Ok(tensor(CudaStorage::wrap_cuda_slice(output, device.clone()), product.shape().clone()))
}

fn tensor(storage: CudaStorage, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

fn not_whole(dtype: DType) -> Error {
    Error::msg(format!("8-bit values come from f32, f16 and bf16 and become one of them, not {dtype:?}"))
}

fn elsewhere() -> Error {
    Error::msg("8-bit values of a GPU are on that GPU")
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::fp8::{Twin, forward_whole};

    /// Ragged widths, a row of zeros, rows of other sizes, and values at e4m3's own borders.
    fn drawn(tokens: usize, width: usize, dtype: DType) -> Result<Tensor> {
        let sizes: Vec<f32> =
            (0..tokens).map(|token| if token == 1 { 0.0 } else { 10.0_f32.powi(token as i32 % 5 - 3) }).collect();
        let sizes = Tensor::from_vec(sizes, (tokens, 1), &Device::Cpu)?;
        Tensor::randn(0.0_f32, 1.0, (tokens, width), &Device::Cpu)?.broadcast_mul(&sizes)?.to_dtype(dtype)
    }

    #[test]
    fn a_gpu_does_what_its_twin_does() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let gpu = crate::device::fp8_device(&device).expect("a GPU has 8-bit values")?;
        let twin = Twin { factor: 1.0 };
        let to_f32 = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (tokens, width, rows) in [(1, 16, 16), (5, 64, 32), (7, 48, 80), (3, 1040, 272)] {
                let input = drawn(tokens, width, dtype)?;
                let (bits, scales) = gpu.round_tokens(&input.to_device(&device)?)?;
                let (twin_bits, twin_scales) = twin.round_tokens(&input)?;
                assert_eq!(to_f32(&scales)?, to_f32(&twin_scales)?, "{dtype:?} {tokens} {width}: scales");
                assert_eq!(
                    to_f32(&crate::device::widened(&bits, DType::F32)?)?,
                    to_f32(&twin_bits)?,
                    "{dtype:?} {tokens} {width}: values"
                );
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
    #[test]
    fn weights_are_made_whole_on_a_gpu_to_what_they_are_on_a_cpu() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let draw = |shape: (usize, usize)| Tensor::randn(0.0_f32, 1.0, shape, &Device::Cpu);
        let input = draw((5, 24))?;
        let bits = draw((7, 24))?.to_dtype(DType::F8E4M3)?;
        let scale = draw((1, 7))?.squeeze(0)?;
        let bias = draw((1, 7))?.squeeze(0)?;
        let exact = forward_whole(&input, &bits, &scale, &bias)?.flatten_all()?.to_vec1::<f32>()?;
        let on = |tensor: &Tensor| tensor.to_device(&device);
        let ours = forward_whole(&on(&input)?, &on(&bits)?, &on(&scale)?, &on(&bias)?)?.flatten_all()?.to_vec1::<f32>()?;
        for (ours, exact) in ours.iter().zip(exact) {
            assert!((ours - exact).abs() <= 1e-5 * (1.0 + exact.abs()), "{ours} is not {exact}");
        }
        Ok(())
    }

    #[test]
    fn every_8_bit_value_is_made_whole_on_a_gpu() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        let values: Vec<f32> =
            (-448..=448).map(|value| value as f32).chain((0..64).map(|value| value as f32 / 512.0)).collect();
        let bits = Tensor::new(values, &Device::Cpu)?.to_dtype(DType::F8E4M3)?;
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let ours =
                crate::device::widened(&bits.to_device(&device)?, dtype)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            assert_eq!(ours.to_vec1::<f32>()?, bits.to_dtype(DType::F32)?.to_vec1::<f32>()?, "{dtype:?}");
        }
        Ok(())
    }
}
