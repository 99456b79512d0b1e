//! Where the noise levels of a sampler come from.

use super::scheduler::SigmaSpacing;

/// Where the noise levels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    /// From evenly spaced timesteps.
    Trained,
    Spaced(SigmaSpacing),
    /// Even in the log signal-to-noise ratio (Lu et al. 2022, arXiv 2206.00927).
    Lu,
}
