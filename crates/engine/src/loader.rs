//! Reads many tensors of files at once: in parallel, or on their way to a GPU through pinned memory.

#[cfg(feature = "cuda")]
mod pinned;

use candle_core::{DType, Device, Tensor};
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use safetensors::Dtype;

use super::EngineError;
use super::stored::Stored;

/// Reads all of them, in the format `dtype`, to `device`; one tensor each, in their order.
///
/// # Errors
/// [`EngineError::Checkpoint`] when one cannot be read, or has a format that weights do not come in.
pub(super) fn read_all(stored: &[Stored<'_>], dtype: DType, device: &Device) -> Result<Vec<Tensor>, EngineError> {
    // The ring of pinned buffers moves elements that the device can convert.
    let staged_formats = stored.iter().all(|one| matches!(one.info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16));
    if staged_formats && let Some(tensors) = staged(stored, dtype, device) {
        return tensors;
    }
    stored.par_iter().map(|one| Ok(one.read(dtype)?.to_device(device)?)).collect()
}

/// Reads tensors to a GPU and makes them `dtype` there: threads fill buffers of pinned memory while those that are full are copied. `None`
/// where there is no GPU.
#[cfg(feature = "cuda")]
fn staged(stored: &[Stored<'_>], dtype: DType, device: &Device) -> Option<Staged> {
    match device {
        Device::Cuda(cuda) => Some(pinned::upload(stored, dtype, cuda)),
        _ => None,
    }
}

#[cfg(not(feature = "cuda"))]
fn staged(_: &[Stored<'_>], _: DType, _: &Device) -> Option<Staged> {
    None
}

type Staged = std::result::Result<Vec<Tensor>, EngineError>;
