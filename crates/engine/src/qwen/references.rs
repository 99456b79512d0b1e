//! Reference images as the transformer's tokens.

use candle_core::Tensor;

use super::packing::Grid;

/// References that are kept, of about 1 MiB each.
pub(super) const KEPT: usize = 32;

/// An image that the transformer looks at.
#[derive(Debug, Clone)]
pub struct Reference {
    /// (1, T, 4·channels), f32, normalized.
    pub tokens: Tensor,
    pub grid: Grid,
}
