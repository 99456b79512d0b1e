//! Opens the device that generates; what depends on the build, but for the way of weights to a GPU (`loader.rs`), is here.

#[cfg(feature = "cuda")]
mod fp8_gemm;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::EngineError;

/// Which GPUs a build is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Cpu,
    /// `compute_cap`: the architecture that the kernels were compiled for, such as `80`; none where the compiler asked the machine that built.
    Cuda {
        compute_cap: Option<&'static str>,
        /// Whether it has flash attention, which is machine code: it runs on GPUs of the same first number only (8.0 on 8.9, not on 9.0).
        flash_attention: bool,
    },
}

/// This build.
#[must_use]
pub fn build() -> Build {
    #[cfg(feature = "cuda")]
    let build = Build::Cuda { compute_cap: option_env!("CUDA_COMPUTE_CAP"), flash_attention: cfg!(feature = "flash-attn") };
    #[cfg(not(feature = "cuda"))]
    let build = Build::Cpu;
    build
}

/// The first GPU in a build with the feature `cuda`, the CPU in any other.
///
/// # Errors
/// When the build expects a GPU and none can be opened: generation on the CPU in its place would be a silent fallback.
pub fn open() -> std::result::Result<Device, EngineError> {
    #[cfg(feature = "cuda")]
    let device = Device::new_cuda(0)?;
    #[cfg(feature = "cuda")]
    atelier_kernels::cuda::keep_memory(&device.as_cuda_device()?.cuda_stream().context()).map_err(candle_core::Error::wrap)?;
    // Layers' results follow each other in the same memory, on either device.
    #[cfg(not(feature = "cuda"))]
    atelier_kernels::caching_allocator::turn_on();
    #[cfg(not(feature = "cuda"))]
    let device = Device::Cpu;
    Ok(device)
}

/// What a model is kept and computed in where no one says otherwise: f16 on a GPU, f32 on a CPU, which has nothing faster.
#[must_use]
pub fn default_dtype(device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { DType::F16 }
}

/// # Errors
/// When the device multiplies nothing in this format.
pub fn check_dtype(dtype: DType, device: &Device) -> std::result::Result<(), EngineError> {
    if device.is_cpu() && dtype == DType::BF16 {
        let problem = "is bf16, in which candle multiplies nothing on a CPU; use f32 or f16".into();
        return Err(EngineError::Request { field: "engine.dtype", problem });
    }
    Ok(())
}

/// Attention (softmax(query·keyᵀ/√D)·value) without a matrix of scores; all (B, tokens, heads, D). `None` where this build has no flash
/// attention, or not for these tensors.
#[cfg(feature = "flash-attn")]
pub(super) fn flash_attention(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Option<Result<Tensor>> {
    /// The widest head that candle-flash-attn has kernels for.
    const WIDEST: usize = 512;
    let width = query.dim(3).ok()?;
    let is_half = matches!(query.dtype(), DType::F16 | DType::BF16);
    let fits = query.device().is_cuda() && is_half && width.is_multiple_of(8) && width <= WIDEST;
    fits.then(|| candle_flash_attn::flash_attn(query, key, value, (width as f32).sqrt().recip(), causal))
}

#[cfg(not(feature = "flash-attn"))]
pub(super) fn flash_attention(_: &Tensor, _: &Tensor, _: &Tensor, _: bool) -> Option<Result<Tensor>> {
    None
}

/// A product of 8-bit values: (T, in) and (out, in), both e4m3, to (T, out), bf16.
pub(super) type Fp8Product = dyn Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync;

/// None where the device has none.
#[cfg(feature = "cuda")]
pub(super) fn fp8_product(device: &Device) -> Option<Result<Arc<Fp8Product>>> {
    let opened = fp8_gemm::open(device)?;
    Some(opened.map(|product| -> Arc<Fp8Product> { Arc::new(product) }))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn fp8_product(_: &Device) -> Option<Result<Arc<Fp8Product>>> {
    None
}
