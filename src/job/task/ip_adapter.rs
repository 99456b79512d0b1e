//! What stands beside a prompt: images that an IP-Adapter looks at, and how strongly.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::control::NetName;
use crate::job::url::AssetUrl;

/// One IP-Adapter at work.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePrompt {
    pub name: NetName,
    pub images: PromptImages,
    pub scale: IpAdapterScale,
}

impl ImagePrompt {
    /// Whether the jobs of both lists can be denoised in one batch: the images are each job's own, as its text is.
    #[must_use]
    pub fn all_agree(some: &[Self], others: &[Self]) -> bool {
        some.len() == others.len() && some.iter().zip(others).all(|(one, another)| one.agrees_with(another))
    }

    fn agrees_with(&self, other: &Self) -> bool {
        self.name == other.name && self.scale == other.scale && self.images.get().len() == other.images.get().len()
    }
}

/// 1 to 4 images: each adds to what every step looks at.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptImages(Vec<AssetUrl>);

impl PromptImages {
    /// # Errors
    /// Says what is allowed when there is none or there are more.
    pub fn new(images: Vec<AssetUrl>) -> Result<Self, String> {
        match images.len() {
            1..=4 => Ok(Self(images)),
            number => Err(format!("must be 1 to 4 addresses, got {number}")),
        }
    }

    #[must_use]
    pub fn get(&self) -> &[AssetUrl] {
        &self.0
    }
}

real_number!(
    /// How strongly images are seen: what an IP-Adapter adds is multiplied by it. Above 1 images tend to fall apart, as they do in diffusers.
    IpAdapterScale, (0.0..=2.0), "a number from 0 to 2", zero is 0.0
);

impl IpAdapterScale {
    /// What an image prompt gets that says nothing else, as in diffusers.
    #[must_use]
    pub fn one() -> Self {
        Self(1.0)
    }
}
