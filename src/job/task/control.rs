//! What ControlNets hold a generation to: an image each, how strongly, and in which part of the steps.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::text;
use crate::job::url::AssetUrl;
use crate::shown;

/// One ControlNet at work.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    pub name: NetName,
    pub image: AssetUrl,
    /// What is made of the image first; none: it is what the ControlNet looks at.
    pub detect: Option<Detector>,
    pub scale: ControlScale,
    /// It takes part in the steps that lie within both.
    pub start: StepsPart,
    pub end: StepsPart,
}

/// What can be made of an image, for a ControlNet that looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detector {
    /// Edges by Canny: gradients above `high` begin one, those above `low` go on with it.
    Canny { low: Threshold, high: Threshold },
}

impl Detector {
    /// As the field `detect` has it, and the manifest of a ControlNet that looks at such images.
    pub const CANNY: &str = "canny";
    pub const NAMES: &str = Self::CANNY;

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Canny { .. } => Self::CANNY,
        }
    }
}

/// The name of a ControlNet or an IP-Adapter, or what kind of image a ControlNet looks at: 1 to 64 of `a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct NetName(String);

impl NetName {
    /// # Errors
    /// Says what is allowed when `text` is not such a name.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_plain = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'));
        if (1..=64).contains(&text.len()) && is_plain {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("must be 1 to 64 of the characters a-z 0-9 . _ -, got {}", shown::text(text)))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for NetName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&text(deserializer)?).map_err(de::Error::custom)
    }
}

real_number!(
    /// How strongly a ControlNet holds: what it adds is multiplied by it.
    ControlScale, (0.0..=2.0), "a number from 0 to 2", zero is 0.0
);
real_number!(
    /// A part of the steps, from the first on.
    StepsPart, (0.0..=1.0), "a number from 0 to 1", zero is 0.0
);
whole_number!(
    /// The length of a gradient, both of its parts together.
    Threshold(u32), (0..=2_040), "a whole number from 0 to 2040"
);

impl ControlScale {
    /// What a control gets that says nothing else.
    #[must_use]
    pub fn one() -> Self {
        Self(1.0)
    }
}

impl StepsPart {
    #[must_use]
    pub fn first() -> Self {
        Self(0.0)
    }

    #[must_use]
    pub fn last() -> Self {
        Self(1.0)
    }
}

impl Threshold {
    /// OpenCV's examples and those of diffusers have these two.
    #[must_use]
    pub fn default_low() -> Self {
        Self(100)
    }

    #[must_use]
    pub fn default_high() -> Self {
        Self(200)
    }
}
