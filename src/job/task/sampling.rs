//! What a job may say about its denoising loop beyond scheduler, steps and guidance.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Value, json};

use super::{StepCount, whole_number};
use crate::shown;

/// What is absent is the sampler's, or the model's, own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    pub timesteps: Option<Timesteps>,
    pub sigmas: Option<Sigmas>,
    pub eta: Option<Eta>,
    pub guidance_rescale: Option<GuidanceRescale>,
    pub image_guidance_scale: Option<ImageGuidanceScale>,
    pub clip_skip: Option<ClipSkip>,
    /// Stable Diffusion XL: the size of the image before it was scaled, as if it were one of the training images.
    pub original_size: Option<HeightWidth>,
    /// Stable Diffusion XL: what was cut off it.
    pub crops_coords_top_left: Option<TopLeft>,
    /// Stable Diffusion XL: the size that it was scaled to.
    pub target_size: Option<HeightWidth>,
    pub step_cache: Option<StepCache>,
}

impl Sampling {
    /// What is set, by its name in a job's body.
    #[must_use]
    pub fn fields(&self) -> Vec<(&'static str, Value)> {
        let Self { timesteps, sigmas, eta, guidance_rescale, image_guidance_scale, clip_skip, .. } = self;
        let fields = [
            ("timesteps", json!(timesteps)),
            ("sigmas", json!(sigmas)),
            ("eta", json!(eta)),
            ("guidance_rescale", json!(guidance_rescale)),
            ("image_guidance_scale", json!(image_guidance_scale)),
            ("clip_skip", json!(clip_skip)),
            ("original_size", json!(self.original_size)),
            ("crops_coords_top_left", json!(self.crops_coords_top_left)),
            ("target_size", json!(self.target_size)),
            ("step_cache", json!(self.step_cache)),
        ];
        fields.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }

    /// The number of steps that a list fixes, and the list's name.
    #[must_use]
    pub fn listed_steps(&self) -> Option<(&'static str, StepCount)> {
        let timesteps = self.timesteps.as_ref().map(|timesteps| ("timesteps", StepCount(timesteps.0.len() as u32)));
        timesteps.or_else(|| self.sigmas.as_ref().map(|sigmas| ("sigmas", StepCount(sigmas.0.len() as u32 - 1))))
    }
}

/// The training timesteps of the steps: 1 to 200 falling whole numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Timesteps(Vec<u32>);

impl Timesteps {
    /// # Errors
    /// Says what is allowed when `timesteps` are no such numbers.
    pub fn new(timesteps: Vec<u32>) -> Result<Self, String> {
        let falling = timesteps.windows(2).all(|pair| pair[0] > pair[1]);
        if falling && (1..=200).contains(&timesteps.len()) { Ok(Self(timesteps)) } else { Err(Self::allowed()) }
    }

    #[must_use]
    pub fn get(&self) -> &[u32] {
        &self.0
    }

    fn allowed() -> String {
        "must be 1 to 200 whole numbers, each below the one before".into()
    }
}

impl<'de> Deserialize<'de> for Timesteps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let numbers = value.as_array().and_then(|numbers| {
            let numbers = numbers.iter().map(|value| u32::try_from(whole_number(value)?).ok());
            numbers.collect::<Option<Vec<_>>>()
        });
        let read = numbers.ok_or_else(Self::allowed).and_then(Self::new);
        read.map_err(|allowed| de::Error::custom(format!("{allowed}, got {}", shown::json(&value))))
    }
}

/// Noise over signal before every step and after the last: 2 to 201 falling numbers, none below 0.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Sigmas(Vec<f64>);

impl Sigmas {
    /// More noise than any model is trained on.
    const LARGEST: f64 = 10_000.0;

    /// # Errors
    /// Says what is allowed when `sigmas` are no such numbers.
    pub fn new(sigmas: Vec<f64>) -> Result<Self, String> {
        let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        let ranged = sigmas.iter().all(|sigma| (0.0..=Self::LARGEST).contains(sigma));
        if falling && ranged && (2..=201).contains(&sigmas.len()) { Ok(Self(sigmas)) } else { Err(Self::allowed()) }
    }

    #[must_use]
    pub fn get(&self) -> &[f64] {
        &self.0
    }

    fn allowed() -> String {
        "must be 2 to 201 numbers from 10000 to 0, each below the one before, the last what remains at the end (0)".into()
    }
}

impl<'de> Deserialize<'de> for Sigmas {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let numbers = value.as_array().and_then(|numbers| numbers.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        let read = numbers.ok_or_else(Self::allowed).and_then(Self::new);
        read.map_err(|allowed| de::Error::custom(format!("{allowed}, got {}", shown::json(&value))))
    }
}

real_number!(
    /// How much fresh noise a step adds, 0 none to 1 as much as DDPM.
    Eta, (0.0..=1.0), "a number from 0 to 1"
);
real_number!(
    /// How far guidance is redelivered to the spread of the prediction without it (Lin et al. 2023, arXiv 2305.08891, section 3.4).
    GuidanceRescale, (0.0..=1.0), "a number from 0 to 1"
);
real_number!(
    /// How far a model that edits images is led towards the image (Brooks et al. 2023, arXiv 2211.09800, equation (3)).
    ImageGuidanceScale, (1.0..=50.0), "a number from 1 to 50"
);
whole_number!(
    /// Last layers of the text encoder that are left out.
    ClipSkip(u32), (0..=23), "a whole number from 0 to 23"
);

whole_number!(
    /// Of so many looks of a UNet, one is complete (`cache_interval` of `DeepCache`).
    CacheInterval(u32), (2..=10), "a whole number from 2 to 10"
);
real_number!(
    /// By which part the first block of a transformer may add something else than before (`threshold` of diffusers' `FirstBlockCacheConfig`).
    CacheThreshold, (0.001..=1.0), "a number from 0.001 to 1"
);

/// What a step takes over from an earlier one: about twice as fast, and another image. Each kind of model has one of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepCache {
    /// Of a UNet.
    Interval(CacheInterval),
    /// Of a transformer.
    Threshold(CacheThreshold),
}

impl<'de> Deserialize<'de> for StepCache {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let mut fields = value.as_object().into_iter().flatten();
        let of = |name: &str, error: serde_json::Error| de::Error::custom(format!("{name} {error}"));
        match (fields.next(), fields.next()) {
            (Some((name, number)), None) if name == "interval" => {
                CacheInterval::deserialize(number).map(Self::Interval).map_err(|error| of(name, error))
            }
            (Some((name, number)), None) if name == "threshold" => {
                CacheThreshold::deserialize(number).map(Self::Threshold).map_err(|error| of(name, error))
            }
            _ => Err(de::Error::custom(format!(
                "must be {{\"interval\": 2 to 10}} for a model with a UNet, or {{\"threshold\": 0.001 to 1}} for one with a transformer, got {}",
                shown::json(&value)
            ))),
        }
    }
}

/// Height and width in pixels, in diffusers' order: each from 1 to 16384.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct HeightWidth([u32; 2]);

/// Pixels from the top and from the left, in diffusers' order: each from 0 to 16384.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TopLeft([u32; 2]);

/// No image is larger that anyone trains with.
const MAX_SIDE_PX: u32 = 16_384;

impl HeightWidth {
    #[must_use]
    pub fn get(self) -> [u32; 2] {
        self.0
    }
}

impl TopLeft {
    #[must_use]
    pub fn get(self) -> [u32; 2] {
        self.0
    }
}

impl<'de> Deserialize<'de> for HeightWidth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        pair(deserializer, 1, "[height, width], each a whole number from 1 to 16384").map(Self)
    }
}

impl<'de> Deserialize<'de> for TopLeft {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        pair(deserializer, 0, "[top, left], each a whole number from 0 to 16384").map(Self)
    }
}

/// Two whole numbers from `least` on.
fn pair<'de, D: Deserializer<'de>>(deserializer: D, least: u32, allowed: &str) -> Result<[u32; 2], D::Error> {
    let value = Value::deserialize(deserializer)?;
    let numbers = value.as_array().and_then(|numbers| {
        let numbers = numbers.iter().map(|value| u32::try_from(whole_number(value)?).ok());
        let numbers: [u32; 2] = numbers.collect::<Option<Vec<_>>>()?.try_into().ok()?;
        numbers.iter().all(|number| (least..=MAX_SIDE_PX).contains(number)).then_some(numbers)
    });
    numbers.ok_or_else(|| de::Error::custom(format!("must be {allowed}, got {}", shown::json(&value))))
}
