//! Virtual try-on: garments onto a person, in types that cannot hold a value out of range.

use serde::{Deserialize, Serialize};

use super::auto_mask::AutoMask;
use super::sampling::StepCache;
use super::{GuidanceScale, ImageCount, Prompt, Seed, StepCount};
use crate::job::url::AssetUrl;

/// A person's image and garments to an image of the person in them.
#[derive(Debug, Clone, PartialEq)]
pub struct TryOn {
    pub person: AssetUrl,
    pub garments: Garments,
    /// Where the person may be changed: white is regenerated, black is kept.
    pub mask: Option<AssetUrl>,
    /// In its place: find the clothes that may be changed.
    pub auto_mask: Option<AutoMask>,
    pub prompt: Option<Prompt>,
    pub negative_prompt: Prompt,
    pub mode: Mode,
    pub steps: StepCount,
    pub guidance_scale: GuidanceScale,
    /// Image `n` is generated from the noise of `seed + n`.
    pub seed: Seed,
    pub resolution: Resolution,
    pub num_images: ImageCount,
    pub step_cache: Option<StepCache>,
    pub requester: Requester,
}

/// 1 to 4 images of garments.
#[derive(Debug, Clone, PartialEq)]
pub struct Garments(Vec<AssetUrl>);

impl Garments {
    /// # Errors
    /// Says what is allowed when there is none or there are more.
    pub fn new(garments: Vec<AssetUrl>) -> Result<Self, String> {
        match garments.len() {
            1..=4 => Ok(Self(garments)),
            number => Err(format!("must be 1 to 4 addresses, got {number}")),
        }
    }

    #[must_use]
    pub fn get(&self) -> &[AssetUrl] {
        &self.0
    }
}

/// How the model is loaded: it decides the default number of steps and guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// 8-bit weights, distilled to 4 steps.
    Fp8,
    /// The whole weights with a Lightning LoRA, 4 steps.
    Lora,
    /// The whole weights as they were trained, 40 steps.
    Base,
}

impl Mode {
    pub const NAMES: &str = "fp8, lora, base";

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
            Self::Lora => "lora",
            Self::Base => "base",
        }
    }

    /// What the mode's weights were made for.
    #[must_use]
    pub fn default_steps(self) -> StepCount {
        match self {
            Self::Fp8 | Self::Lora => StepCount(4),
            Self::Base => StepCount(40),
        }
    }

    /// What the mode's weights were made for.
    #[must_use]
    pub fn default_guidance_scale(self) -> GuidanceScale {
        match self {
            Self::Fp8 | Self::Lora => GuidanceScale(1.0),
            Self::Base => GuidanceScale(4.0),
        }
    }
}

/// Pixels of the short side: 480, 720 or 1080.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resolution {
    #[serde(rename = "480p")]
    P480,
    #[serde(rename = "720p")]
    P720,
    #[serde(rename = "1080p")]
    P1080,
}

impl Resolution {
    pub const NAMES: &str = "480p, 720p, 1080p";

    #[must_use]
    pub fn short_side_px(self) -> u32 {
        match self {
            Self::P480 => 480,
            Self::P720 => 720,
            Self::P1080 => 1080,
        }
    }
}

/// Who asked, in the asset service's own words: handed through to it, and deciding nothing here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    pub user_id: Option<String>,
    pub session_id: Option<String>,
    pub provider: Option<String>,
}

impl Requester {
    /// Characters of each text.
    pub const MAX_CHARS: usize = 256;
}
