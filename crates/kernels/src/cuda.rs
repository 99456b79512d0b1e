//! What candle has no call for on a GPU: kernels of our own, products by cuBLASLt, a memory pool that keeps what it has, pinned memory.

mod arena;
pub mod attention;
pub mod channels_last;
pub mod convolution;
mod descriptions;
pub mod epilogue;
pub mod fp8;
pub mod gated;
pub mod gguf;
pub mod graph;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod libraries;
pub mod matmul;
pub mod modulation;
pub mod modules;
pub mod norm;
pub mod rotary;

use std::sync::Arc;

use cudarc::driver::result::{device, mem_pool};
use cudarc::driver::sys::CUmemPool_attribute;
use cudarc::driver::{CudaContext, CudaStream, DeviceRepr, DriverError, PinnedHostSlice, ValidAsZeroBits};

/// Makes the device's memory pool keep what tensors give back; by default it goes back to the driver at every synchronisation.
///
/// # Errors
/// The driver's.
pub fn keep_memory(context: &CudaContext) -> Result<(), DriverError> {
    context.bind_to_thread()?;
    let mut threshold = u64::MAX;
    // SAFETY: the device is the context's own, and this attribute is a u64.
    unsafe {
        let pool = device::get_default_mem_pool(context.cu_device())?;
        let threshold = std::ptr::from_mut(&mut threshold).cast();
        mem_pool::set_attribute(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, threshold)
    }
}

/// Records no events any more for what is made on this stream: two for each tensor that a kernel reads or writes, eleven thousand a step.
///
/// # Panics
/// When it is a stream of the driver's own, of which each thread has another: those need the events.
pub fn trust_one_stream(stream: &CudaStream) {
    // The legacy stream is 0, 1 is its other name, and 2 that of each thread (`CU_STREAM_PER_THREAD`).
    assert!(stream.cu_stream() as usize > 2, "a stream that all threads share");
    // SAFETY: all work on this context goes to that one stream, so it is in order without events: what is freed, reused, or written again, is so
    // after what came before it.
    unsafe { stream.context().disable_event_tracking() };
}

/// Zeros in memory that the GPU can read by itself while this process goes on.
///
/// # Errors
/// The driver's.
pub fn pinned<T: DeviceRepr + ValidAsZeroBits>(
    context: &Arc<CudaContext>,
    count: usize,
) -> Result<PinnedHostSlice<T>, DriverError> {
    // The flag 0 is plain, cached memory: files are read into it by the processor.
    // SAFETY: it is `count` values long, no one else has it yet, and zeros are values of every such `T`.
    unsafe {
        let mut memory = context.alloc_pinned_with_flags::<T>(count, 0)?;
        memory.as_mut_ptr()?.write_bytes(0, count);
        Ok(memory)
    }
}
