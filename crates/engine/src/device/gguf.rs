//! Weights in ggml's blocks made whole on a GPU, by the kernels of `atelier_kernels::cuda`.

use atelier_kernels::cuda::gguf::unpack;
use atelier_kernels::cuda::modules::Element;
use atelier_kernels::gguf::BlockFormat;
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Result, Storage, Tensor};
use half::{bf16, f16};

pub(super) fn unpacked(device: &CudaDevice, blocks: &Tensor, format: BlockFormat, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F32 => unpacked_to::<f32>(device, blocks, format),
        DType::F16 => unpacked_to::<f16>(device, blocks, format),
        DType::BF16 => unpacked_to::<bf16>(device, blocks, format),
        other => Err(Error::msg(format!("blocks become f32, f16 or bf16, not {other:?}"))),
    }
}

fn unpacked_to<T: Element + CudaDType>(device: &CudaDevice, blocks: &Tensor, format: BlockFormat) -> Result<Tensor> {
    let (rows, bytes) = blocks.dims2()?;
    let (storage, layout) = blocks.storage_and_layout();
    let (Storage::Cuda(storage), Some((first, end))) = (&*storage, layout.contiguous_offsets()) else {
        return Err(Error::msg("blocks of weights lie in order, on the device that computes"));
    };
    let blocks = storage.as_cuda_slice::<u8>()?.slice(first..end);
    let whole = unpack::<T>(&device.cuda_stream(), format, &blocks).map_err(Error::wrap)?;
    let whole = CudaStorage::wrap_cuda_slice(whole, device.clone());
    let shape = (rows, bytes / format.bytes() * format.values());
    Ok(Tensor::from_storage(Storage::Cuda(whole), shape, BackpropOp::none(), false))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Rows that begin in the middle of a tensor, of blocks of any bits but infinite scales.
    #[test]
    fn a_gpu_makes_whole_what_a_cpu_does_bit_by_bit() -> Result<()> {
        let device = crate::device::open().map_err(Error::wrap)?;
        for format in BlockFormat::ALL {
            let row = 3 * format.bytes();
            let mut state = 7_u32;
            let bytes: Vec<u8> = (0..5 * row)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Never the exponent of infinity, wherever a scale may lie.
                    (state >> 24) as u8 & 0xBF
                })
                .collect();
            let blocks = Tensor::from_vec(bytes, (5, row), &Device::Cpu)?;
            let there = blocks.to_device(&device)?.narrow(0, 1, 3)?;
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let exact = crate::packed::unpacked(&blocks.narrow(0, 1, 3)?, format, dtype)?;
                let ours = crate::packed::unpacked(&there, format, dtype)?.to_device(&Device::Cpu)?;
                let values = |tensor: &Tensor| tensor.to_dtype(DType::F32)?.to_vec2::<f32>();
                assert_eq!(values(&ours)?, values(&exact)?, "{} {dtype:?}", format.name());
            }
        }
        Ok(())
    }
}
