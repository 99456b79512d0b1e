//! By how much the images of a job are enlarged after they were generated, and by what.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::ModelName;

/// What a job asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Upscale {
    pub factor: UpscaleFactor,
    /// Which of the function's upscalers; none: the first that enlarges by the factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<ModelName>,
}

/// An upscaler that is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upscaler {
    pub name: ModelName,
    pub factor: UpscaleFactor,
    /// Of its weights, as the model's manifest names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
}

whole_number!(
    /// How many times as wide and as high an image becomes.
    UpscaleFactor(u32), (2..=4), "2 or 4", multiple of 2
);
