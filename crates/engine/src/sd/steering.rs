//! What steers the images of a batch besides their texts: ControlNets and image prompts.

use super::control::PlannedControl;
use super::image_prompt::PlannedPrompt;

#[derive(Default)]
pub(super) struct Steering {
    pub(super) controls: Vec<PlannedControl>,
    /// In the order of [`Text::images`](super::conditioning::Text::images).
    pub(super) image_prompts: Vec<PlannedPrompt>,
}
