//! In which formats the transformer is kept and computed.

use candle_core::{DType, Device};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Of whole weights and of all that is computed.
    pub compute: DType,
    /// Whether 8-bit weights stay so on the device; else they are made whole when they are read.
    pub keep_fp8: bool,
}

impl Precision {
    /// bf16 on a GPU, with 8-bit weights as they are; f32 and everything whole on a CPU, which has no fast bf16.
    #[must_use]
    pub fn of(device: &Device) -> Self {
        if device.is_cpu() {
            Self { compute: DType::F32, keep_fp8: false }
        } else {
            Self { compute: DType::BF16, keep_fp8: true }
        }
    }
}
