//! Opens the device that paints; the only place that knows which build this is.

use candle_core::Device;

use super::EngineError;

/// Which GPUs a build is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    Cpu,
    /// `compute_cap`: the architecture that the kernels were compiled for, such as `80`; none where the compiler asked the machine that built.
    Cuda {
        compute_cap: Option<&'static str>,
    },
}

/// This build.
#[must_use]
pub fn build() -> Build {
    #[cfg(feature = "cuda")]
    let build = Build::Cuda { compute_cap: option_env!("CUDA_COMPUTE_CAP") };
    #[cfg(not(feature = "cuda"))]
    let build = Build::Cpu;
    build
}

/// The first GPU in a build with the feature `cuda`, the CPU in any other.
///
/// # Errors
/// When the build expects a GPU and none can be opened: painting on the CPU in its place would be a silent fallback.
pub fn open() -> Result<Device, EngineError> {
    #[cfg(feature = "cuda")]
    let device = Device::new_cuda(0)?;
    #[cfg(not(feature = "cuda"))]
    let device = Device::Cpu;
    Ok(device)
}
