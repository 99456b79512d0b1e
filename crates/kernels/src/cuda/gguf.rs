//! Weights in ggml's blocks made whole on a GPU (`cuda/gguf.cu`).
//!
//! candle's own kernels for such blocks are machine code, which CUDA's runtime launches.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, DriverError, LaunchConfig, PushKernelArg as _};

use super::modules::{Element, Module, kernel};
use crate::gguf::BlockFormat;

/// Of a block of threads.
const THREADS: u32 = 256;
/// Blocks of threads: each takes more than one share where there are more.
const MAX_BLOCKS: usize = 4096;

/// Makes `blocks` whole, to the nearest values of `T` to those of [`BlockFormat::unpack`].
///
/// # Errors
/// The driver's.
///
/// # Panics
/// When these are no whole blocks.
pub fn unpack<T: Element>(
    stream: &Arc<CudaStream>,
    format: BlockFormat,
    blocks: &CudaView<'_, u8>,
) -> Result<CudaSlice<T>, DriverError> {
    assert!(blocks.len().is_multiple_of(format.bytes()), "whole blocks");
    let count = blocks.len() / format.bytes() * format.values();
    // SAFETY: the kernel below writes every value.
    let out = unsafe { stream.alloc::<T>(count)? };
    if count > 0 {
        let function = kernel(stream.context(), Module::Gguf, &format!("unpack_{}_{}", format.name(), T::NAME))?;
        let grid = count.div_ceil(THREADS as usize).min(MAX_BLOCKS) as u32;
        let mut launch = stream.launch_builder(&function);
        launch.arg(blocks).arg(&out).arg(&count);
        let config = LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of `unpack_*`, which goes by `count` and not by the grid; blocks begin at even addresses.
        unsafe { launch.launch(config)? };
    }
    Ok(out)
}
