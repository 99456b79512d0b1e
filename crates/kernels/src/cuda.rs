//! What candle has no call for on a GPU: products of 8-bit values by cuBLASLt, a memory pool that keeps what it has, pinned memory.

mod arena;
pub mod attention;
pub mod convolution;
pub mod epilogue;
pub mod fp8;
pub mod gguf;
pub mod graph;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod libraries;
pub mod modulation;
pub mod modules;
pub mod norm;
pub mod rotary;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::result::{device, mem_pool};
use cudarc::driver::sys::CUmemPool_attribute;
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DriverError, PinnedHostSlice, ValidAsZeroBits,
};
use half::bf16;

/// Bytes that cuBLASLt may use next to a product's matrices, as NVIDIA recommends for Hopper (cuBLAS' documentation, `cublasSetWorkspace`).
const WORKSPACE_BYTES: usize = 32 << 20;

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

/// Why there is no product of 8-bit values.
#[derive(Debug, thiserror::Error)]
pub enum Fp8Error {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Cublas(#[from] CublasError),
}

/// Sides of a product: of a matrix (`columns` x `depth`) with the transpose of another (`rows` x `depth`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sides {
    /// A multiple of 16.
    pub rows: usize,
    pub columns: usize,
    /// A multiple of 16.
    pub depth: usize,
}

/// Multiplies matrices of e4m3 values, summed up in f32; needs a GPU that has such products (compute capability 8.9).
pub struct Fp8Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    /// What cuBLASLt advised for a product's sides; to ask again for each would cost more than a small product does.
    chosen: Mutex<HashMap<Sides, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: cuBLASLt's handle may be used by any thread, one at a time or several (cuBLASLt's documentation, "Thread safety").
unsafe impl Send for Fp8Gemm {}
// SAFETY: as above; what is asked for is behind a lock.
unsafe impl Sync for Fp8Gemm {}

impl Fp8Gemm {
    /// # Errors
    /// The driver's or cuBLASLt's.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self, Fp8Error> {
        let workspace = stream.alloc_zeros(WORKSPACE_BYTES)?;
        let handle = result::create_handle()?;
        Ok(Self { handle, workspace, stream: Arc::clone(stream), chosen: Mutex::default() })
    }

    /// `weight`: (rows, depth), `input`: (columns, depth), both e4m3 and 16-byte aligned. Returns (columns, rows), bf16.
    ///
    /// # Errors
    /// When the GPU has no such product, or not of these sides.
    ///
    /// # Panics
    /// When the values are not one byte each, or are fewer than `sides` says.
    pub fn multiply<T: DeviceRepr>(
        &self,
        weight: &impl DevicePtr<T>,
        input: &impl DevicePtr<T>,
        sides: Sides,
    ) -> Result<CudaSlice<bf16>, Fp8Error> {
        assert_eq!(size_of::<T>(), 1, "e4m3 has a byte");
        let Sides { rows, columns, depth } = sides;
        assert!(weight.len() >= rows * depth && input.len() >= columns * depth);
        // SAFETY: the product below writes every value; with a beta of 0 none is read.
        let mut out = unsafe { self.stream.alloc::<bf16>(rows * columns)? };
        // In cuBLAS' order, columns first: out (rows, columns) = weight (depth, rows)ᵀ · input (depth, columns).
        let layouts = [
            Layout::new(sys::cudaDataType_t::CUDA_R_8F_E4M3, depth, rows)?,
            Layout::new(sys::cudaDataType_t::CUDA_R_8F_E4M3, depth, columns)?,
            Layout::new(sys::cudaDataType_t::CUDA_R_16BF, rows, columns)?,
        ];
        let description = Description::new()?;
        let algorithm = self.algorithm(sides, &description, &layouts)?;
        let [weights, inputs, outputs] = &layouts;
        let (weight, _weight_in_use) = weight.device_ptr(&self.stream);
        let (input, _input_in_use) = input.device_ptr(&self.stream);
        let (out_address, out_in_use) = out.device_ptr_mut(&self.stream);
        let (workspace, _workspace_in_use) = self.workspace.device_ptr(&self.stream);
        let alpha = 1.0_f32;
        let beta = 0.0_f32;
        // SAFETY: the matrices are as large as their layouts say (checked above), and in use until the stream is done with them; the
        // values are f32, as the description says.
        unsafe {
            result::matmul(
                self.handle,
                description.0,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                weight as *const c_void,
                weights.0,
                input as *const c_void,
                inputs.0,
                out_address as *const c_void,
                outputs.0,
                out_address as *mut c_void,
                outputs.0,
                &raw const algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )?;
        }
        drop(out_in_use);
        Ok(out)
    }

    fn algorithm(
        &self,
        sides: Sides,
        description: &Description,
        [weights, inputs, outputs]: &[Layout; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t, CublasError> {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = chosen.get(&sides) {
            return Ok(*algorithm);
        }
        let preference = Preference::new()?;
        // SAFETY: everything handed over was made above and lives until the call returns.
        let advised = unsafe {
            let description = description.0;
            let outputs = outputs.0;
            result::get_matmul_algo_heuristic(self.handle, description, weights.0, inputs.0, outputs, outputs, preference.0)?
        };
        chosen.insert(sides, advised.algo);
        Ok(advised.algo)
    }
}

impl Drop for Fp8Gemm {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// A matrix in cuBLAS' order, without gaps.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(values: sys::cudaDataType, rows: usize, columns: usize) -> Result<Self, CublasError> {
        result::create_matrix_layout(values, rows as u64, columns as u64, rows as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// The transpose of the first matrix times the second: the only order that 8-bit values are multiplied in.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, CublasError> {
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let factors = sys::cudaDataType_t::CUDA_R_32F;
        let description = Self(result::create_matmul_desc(sums, factors)?);
        // `CUBLAS_OP_T`, which cudarc has with cuBLAS alone.
        let transposed = 1_i32;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
        // SAFETY: the attribute is of this type and size.
        unsafe {
            let value = std::ptr::from_ref(&transposed).cast();
            result::set_matmul_desc_attribute(description.0, attribute, value, size_of_val(&transposed))?;
        }
        // Hopper sums 8-bit products twice as fast where not every partial sum is brought to f32, as LightX2V's kernels do.
        let fast = 1_i8;
        let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_FAST_ACCUM;
        // SAFETY: the attribute is of this type and size.
        unsafe {
            let value = std::ptr::from_ref(&fast).cast();
            result::set_matmul_desc_attribute(description.0, attribute, value, size_of_val(&fast))?;
        }
        Ok(description)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, CublasError> {
        let preference = Self(result::create_matmul_pref()?);
        let attribute = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the attribute is of this type and size.
        unsafe {
            let value = std::ptr::from_ref(&WORKSPACE_BYTES).cast();
            result::set_matmul_pref_attribute(preference.0, attribute, value, size_of_val(&WORKSPACE_BYTES))?;
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and no one uses it any more.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
