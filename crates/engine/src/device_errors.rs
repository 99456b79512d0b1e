//! Distinguishes the faults of a CUDA device that leave no way back from those that the next job may not have.

use super::EngineError;

/// Errors after which every further call on the context fails alike: "the process must be terminated and relaunched", says
/// <https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TYPES.html> of each.
const STICKY: [&str; 16] = [
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_EXTERNAL_DEVICE",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED",
];

/// The error, as [`EngineError::Fatal`] if it is one. The libraries below distinguish them only in their messages, and some
/// of them panic instead.
pub(super) fn classify(error: EngineError) -> EngineError {
    let problem = match &error {
        EngineError::Candle(error) => error.to_string(),
        EngineError::Panicked(problem) => problem.clone(),
        _ => return error,
    };
    if STICKY.iter().any(|name| problem.contains(name)) { EngineError::Fatal { problem } } else { error }
}

/// The error, as [`EngineError::OutOfMemory`] if it is one. Candle distinguishes a device without memory from other faults only in its message.
pub(super) fn classify_memory_error(error: EngineError) -> EngineError {
    match error {
        EngineError::Candle(error) if error.to_string().to_lowercase().contains("out_of_memory") => {
            EngineError::OutOfMemory { problem: error.to_string() }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_breaks_the_context_is_fatal() {
        let is_fatal = |error| matches!(classify(error), EngineError::Fatal { .. });
        let candle = |text: &str| EngineError::Candle(candle_core::Error::Msg(text.into()));
        assert!(is_fatal(candle("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")")));
        assert!(is_fatal(EngineError::Panicked("DriverError(CUDA_ERROR_LAUNCH_FAILED, \"\")".into())));
        assert!(!is_fatal(candle("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")));
        assert!(!is_fatal(candle("shape mismatch")));
        assert!(!is_fatal(EngineError::Panicked("a bug in a kernel".into())));
    }
}
