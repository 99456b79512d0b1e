//! What steers the images of a batch besides their texts: ControlNets and image prompts.

use super::control::PlannedControl;

#[derive(Default)]
pub(super) struct Steering {
    pub(super) controls: Vec<PlannedControl>,
    /// In the order of [`Text::images`](super::conditioning::Text::images).
    pub(super) image_prompts: Vec<PlannedPrompt>,
}

/// An IP-Adapter at work for the requests of a batch.
pub(super) struct PlannedPrompt {
    /// Its place among the model's.
    pub(super) place: usize,
    /// What is seen is multiplied by it; not 0.
    pub(super) scale: f64,
}
