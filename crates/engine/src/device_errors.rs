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

/// How NVIDIA's libraries end that work failed which the device had taken: it has met one of [`STICKY`] (cuBLAS and cuDNN documentation,
/// `*_STATUS_EXECUTION_FAILED`: "this is often caused by a launch failure of the kernel").
const FAILED_WORK: [&str; 4] = [
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CURAND_STATUS_LAUNCH_FAILURE",
];

/// How the driver and NVIDIA's libraries say that there is no memory: `CUDA_ERROR_OUT_OF_MEMORY`, `CUBLAS_STATUS_ALLOC_FAILED`,
/// `CURAND_STATUS_ALLOCATION_FAILED`, cuDNN's `CUDNN_STATUS_ALLOC_FAILED` and `CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED`.
const NO_MEMORY: [&str; 3] = ["OUT_OF_MEMORY", "ALLOC_FAILED", "ALLOCATION_FAILED"];

/// The error, as [`EngineError::Fatal`] if it is one. The libraries below distinguish them only in their messages, and some
/// of them panic instead.
pub(super) fn classify(error: EngineError) -> EngineError {
    let problem = match &error {
        EngineError::Candle(error) => error.to_string(),
        EngineError::Panicked(problem) => problem.clone(),
        _ => return error,
    };
    let says = |names: &[&str]| names.iter().any(|name| problem.contains(name));
    if says(&STICKY) || says(&FAILED_WORK) && !says(&NO_MEMORY) { EngineError::Fatal { problem } } else { error }
}

/// Where nothing more can be put out of the way: what needs less memory.
pub(super) fn advise_smaller(error: EngineError) -> EngineError {
    match error {
        EngineError::OutOfMemory { problem } => {
            EngineError::OutOfMemory { problem: format!("{problem}; a smaller size or fewer images need less") }
        }
        other => other,
    }
}

/// The error, as [`EngineError::OutOfMemory`] if it is one. Candle distinguishes a device without memory from other faults only in its message.
pub(super) fn classify_memory_error(error: EngineError) -> EngineError {
    match error {
        EngineError::Candle(error) => {
            let problem = error.to_string();
            let no_memory = NO_MEMORY.iter().any(|name| problem.contains(name));
            if no_memory { EngineError::OutOfMemory { problem } } else { EngineError::Candle(error) }
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
        assert!(is_fatal(candle("CublasError(CUBLAS_STATUS_EXECUTION_FAILED)")));
        assert!(is_fatal(candle("CudnnError(CUDNN_STATUS_EXECUTION_FAILED_CUDA_DRIVER)")));
        assert!(!is_fatal(candle("CublasError(CUBLAS_STATUS_NOT_SUPPORTED)")));
    }

    #[test]
    fn a_library_without_memory_is_a_device_without_memory() {
        let is_memory = |text: &str| {
            let error = EngineError::Candle(candle_core::Error::Msg(text.into()));
            let sticky =
                matches!(classify(EngineError::Candle(candle_core::Error::Msg(text.into()))), EngineError::Fatal { .. });
            matches!(classify_memory_error(error), EngineError::OutOfMemory { .. }) && !sticky
        };
        assert!(is_memory("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"));
        assert!(is_memory("CublasError(CUBLAS_STATUS_ALLOC_FAILED)"));
        assert!(is_memory("CurandError(CURAND_STATUS_ALLOCATION_FAILED)"));
        assert!(is_memory("CudnnError(CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)"));
        assert!(!is_memory("CublasError(CUBLAS_STATUS_EXECUTION_FAILED)"));
        assert!(!is_memory("shape mismatch"));
    }
}
