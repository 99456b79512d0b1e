//! What a generation starts from instead of noise.

use super::{StepCount, Strength};
use crate::job::url::AssetUrl;

/// An image to start from, and how far to go from it.
#[derive(Debug, Clone, PartialEq)]
pub struct StartImage {
    pub url: AssetUrl,
    pub strength: Strength,
    /// Where it may be changed: white is regenerated, black is kept. Without it, everywhere.
    pub mask: Option<AssetUrl>,
}

impl StartImage {
    /// Steps at the noisy end that are left out, of so many.
    #[must_use]
    pub fn skipped(&self, steps: StepCount) -> u32 {
        steps.get() - (f64::from(steps.get()) * self.strength.get()) as u32
    }
}
