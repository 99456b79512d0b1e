//! What steers a generation besides its text: images that ControlNets hold it to, and images that stand beside its prompt.

use image::RgbImage;

/// An image that a ControlNet holds a generation to.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// The ControlNet, by its name among the model's.
    pub net: String,
    /// In the size of the request.
    pub image: RgbImage,
    /// What it adds is multiplied by it; finite, and without effect at 0.
    pub scale: f64,
    /// It takes part in the steps that lie within these parts of the schedule, each 0 to 1: all of a step.
    pub start: f64,
    pub end: f64,
}

/// Images that stand beside a prompt, as an IP-Adapter sees them.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePrompt {
    /// The IP-Adapter, by its name among the model's.
    pub adapter: String,
    /// One or more, of any size: of each the middle is seen, in a square.
    pub images: Vec<RgbImage>,
    /// What is seen is multiplied by it; finite, and without effect at 0.
    pub scale: f64,
}

impl ImagePrompt {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        self.scale != 0.0
    }

    /// Whether requests with these can be in one batch: each row of it takes as many tokens of the same IP-Adapters, as strongly.
    #[must_use]
    pub fn all_agree(some: &[Self], others: &[Self]) -> bool {
        some.len() == others.len() && some.iter().zip(others).all(|(one, another)| one.agrees_with(another))
    }

    fn agrees_with(&self, other: &Self) -> bool {
        self.adapter == other.adapter && self.images.len() == other.images.len() && self.scale.total_cmp(&other.scale).is_eq()
    }
}
