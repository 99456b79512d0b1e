//! Edits: images and a text that says what is to become of them, in types that cannot hold a value out of range.

use super::sampling::StepCache;
use super::tryon::Mode;
use super::{EditSidePx, GuidanceScale, ImageCount, Lora, ModelName, Prompt, Seed, StepCount};
use crate::job::url::AssetUrl;

/// Images and a text to an image of what the text says.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    pub model: ModelName,
    /// In the order in which the prompt counts them; the first decides the size of the result, unless the job does.
    pub images: EditImages,
    pub prompt: Prompt,
    pub negative_prompt: Prompt,
    /// Merged one after the other, in this order.
    pub loras: Vec<Lora>,
    /// Of a model that has several.
    pub mode: Option<Mode>,
    pub steps: StepCount,
    pub guidance_scale: GuidanceScale,
    /// A side that is not given follows from the first image, as if neither were.
    pub width: Option<EditSidePx>,
    pub height: Option<EditSidePx>,
    pub num_images: ImageCount,
    pub step_cache: Option<StepCache>,
    /// Image `n` is generated from the noise of `seed + n`.
    pub seed: Seed,
}

/// 1 to 3 images: as many as the model's makers trained it on.
#[derive(Debug, Clone, PartialEq)]
pub struct EditImages(Vec<AssetUrl>);

impl EditImages {
    /// # Errors
    /// Says what is allowed when there is none or there are more.
    pub fn new(images: Vec<AssetUrl>) -> Result<Self, String> {
        match images.len() {
            1..=3 => Ok(Self(images)),
            number => Err(format!("must be 1 to 3 addresses, got {number}")),
        }
    }

    #[must_use]
    pub fn get(&self) -> &[AssetUrl] {
        &self.0
    }
}
