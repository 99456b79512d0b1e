//! How long the parts of a load took.

use std::time::Duration;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loading {
    /// Weights, from their files to the device.
    pub read: Duration,
    /// All else: settings, tokenizer, modules over the weights.
    pub build: Duration,
}
