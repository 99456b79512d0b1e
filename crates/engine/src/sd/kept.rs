//! What a mask keeps of the image that a generation starts from.

use candle_core::{Result, Tensor};

/// What a masked generation keeps coming back to.
#[derive(Clone)]
pub(super) struct Kept {
    /// (N, 4, H/8, W/8), f32, without noise.
    pub(super) image: Tensor,
    pub(super) noise: Tensor,
    pub(super) mask: Tensor,
}

impl Kept {
    /// The same of other images.
    pub(super) fn of(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { image: choose(&self.image)?, noise: choose(&self.noise)?, mask: self.mask.clone() })
    }
}
