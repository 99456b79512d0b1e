//! What joins and enlarges images whose channels are last, as operations over candle's tensors (`cuda/channels_last.rs`).

use atelier_kernels::cuda::channels_last::{doubled, joined};
use atelier_kernels::cuda::epilogue::PACK_BYTES;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{CudaStorage, DType, Error, Result, Shape, Tensor};
use half::{bf16, f16};

use super::own_kernels::run;

/// (B, H, W, C) and (B, H, W, D) to (B, H, W, C + D). `None` where there is no kernel for them: of other formats, or of channels that are not whole packs.
pub(crate) fn joined_last(one: &Tensor, other: &Tensor) -> Option<Result<Tensor>> {
    match (one.dtype(), other.dtype()) {
        (DType::F16, DType::F16) if has_packs(one) && has_packs(other) => Some(joined_of::<f16>(one, other)),
        (DType::BF16, DType::BF16) if has_packs(one) && has_packs(other) => Some(joined_of::<bf16>(one, other)),
        _ => None,
    }
}

/// (B, H, W, C) to (B, 2·H, 2·W, C), every place the one that it lies in. `None` as of [`joined_last`].
pub(crate) fn doubled_last(images: &Tensor) -> Option<Result<Tensor>> {
    match images.dtype() {
        DType::F16 if has_packs(images) => Some(doubled_of::<f16>(images)),
        DType::BF16 if has_packs(images) => Some(doubled_of::<bf16>(images)),
        _ => None,
    }
}

fn has_packs(images: &Tensor) -> bool {
    let channels = images.dims().last().copied().unwrap_or_default();
    images.device().is_cuda() && (channels * images.dtype().size_in_bytes()).is_multiple_of(PACK_BYTES)
}

fn joined_of<T: CudaDType + DeviceRepr>(one: &Tensor, other: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = one.dims4()?;
    let more = other.dim(3)?;
    if other.dims() != [batch, height, width, more] {
        return Err(Error::msg(format!("{:?} cannot stand behind {:?}", other.dims(), one.dims())));
    }
    run([one, other], &Shape::from((batch, height, width, channels + more)), |device, both| {
        let output = joined::<T>(&device.cuda_stream(), both, [channels, more]).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}

fn doubled_of<T: CudaDType + DeviceRepr>(images: &Tensor) -> Result<Tensor> {
    let (batch, height, width, channels) = images.dims4()?;
    run([images], &Shape::from((batch, 2 * height, 2 * width, channels)), |device, [images]| {
        let output = doubled::<T>(&device.cuda_stream(), images, [batch, height, width, channels]).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
    })
}
