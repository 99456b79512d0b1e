//! What a job gets where neither it nor its model's manifest say anything else: what callers rely on.

use super::{GuidanceScale, ModelName, Seed, SidePx, StepCount};

impl ModelName {
    /// What a job asks for that names no model, where the manifest says nothing else.
    #[must_use]
    pub fn default_value() -> Self {
        Self("sd15".into())
    }
}

impl StepCount {
    /// What a generation from text gets, where neither job nor manifest say anything else.
    #[must_use]
    pub fn default_value() -> Self {
        Self(50)
    }
}

impl GuidanceScale {
    /// What a generation from text gets, where neither job nor manifest say anything else.
    #[must_use]
    pub fn default_value() -> Self {
        Self(7.5)
    }
}

impl SidePx {
    /// What a generation from text gets, where neither job nor manifest say anything else.
    #[must_use]
    pub fn default_value() -> Self {
        Self(512)
    }
}

impl Seed {
    /// What a job gets, where neither it nor the manifest say anything else.
    #[must_use]
    pub fn default_value() -> Self {
        Self(42)
    }
}
