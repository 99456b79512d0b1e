//! Opens the device that paints; the only place that knows which build this is.

use candle_core::Device;

use super::EngineError;

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
