//! What is to be generated, in types that cannot hold a value out of range.

#[macro_use]
mod number;
pub mod auto_mask;
pub mod control;
mod defaults;
pub mod edit;
pub mod ip_adapter;
pub mod prompt;
pub mod sampling;
pub mod scheduler;
pub mod start;
pub mod tryon;
pub mod upscale;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use self::control::Control;
use self::edit::Edit;
use self::ip_adapter::ImagePrompt;
use self::prompt::Embedding;
use self::sampling::{Sampling, StepCache};
use self::scheduler::Scheduler;
use self::start::StartImage;
use self::tryon::{Mode, TryOn};
use super::url::AssetUrl;
use crate::shown;

/// The kinds of work; each variant has only its own fields.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    Generate(Generate),
    TryOn(TryOn),
    Edit(Edit),
}

impl Task {
    /// As the field `task` has it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Generate(_) => "generate",
            Self::TryOn(_) => "tryon",
            Self::Edit(_) => "edit",
        }
    }

    /// What it asks for in words; empty: nothing of its own.
    #[must_use]
    pub fn prompt(&self) -> &str {
        match self {
            Self::Generate(generate) => generate.prompt.as_str(),
            Self::TryOn(tryon) => tryon.prompt.as_ref().map_or("", Prompt::as_str),
            Self::Edit(edit) => edit.prompt.as_str(),
        }
    }

    /// What is to be left out; empty: nothing of its own.
    #[must_use]
    pub fn negative_prompt(&self) -> &str {
        match self {
            Self::Generate(generate) => generate.negative_prompt.as_str(),
            Self::TryOn(tryon) => tryon.negative_prompt.as_str(),
            Self::Edit(edit) => edit.negative_prompt.as_str(),
        }
    }

    /// What steps may take over from earlier ones.
    #[must_use]
    pub fn step_cache(&self) -> Option<StepCache> {
        match self {
            Self::Generate(generate) => generate.sampling.step_cache,
            Self::TryOn(tryon) => tryon.step_cache,
            Self::Edit(edit) => edit.step_cache,
        }
    }

    /// Images that are generated.
    #[must_use]
    pub fn num_images(&self) -> ImageCount {
        match self {
            Self::Generate(generate) => generate.num_images,
            Self::TryOn(tryon) => tryon.num_images,
            Self::Edit(edit) => edit.num_images,
        }
    }

    /// The model that the job names, or gets by default; none: it is not asked for by name.
    #[must_use]
    pub fn model(&self) -> Option<&ModelName> {
        match self {
            Self::Generate(generate) => Some(&generate.model),
            Self::TryOn(_) => None,
            Self::Edit(edit) => Some(&edit.model),
        }
    }
}

/// Text to image.
#[derive(Debug, Clone, PartialEq)]
pub struct Generate {
    pub model: ModelName,
    pub prompt: Prompt,
    pub negative_prompt: Prompt,
    pub loras: Vec<Lora>,
    pub embeddings: Vec<Embedding>,
    /// What it starts from instead of noise.
    pub start: Option<StartImage>,
    /// What ControlNets hold it to.
    pub controls: Vec<Control>,
    /// Images that IP-Adapters look at beside the prompt.
    pub image_prompts: Vec<ImagePrompt>,
    pub steps: StepCount,
    pub guidance_scale: GuidanceScale,
    pub scheduler: Scheduler,
    pub sampling: Sampling,
    /// Of a model that has several.
    pub mode: Option<Mode>,
    pub size: Size,
    pub num_images: ImageCount,
    /// Image `n` is generated from the noise of `seed + n`.
    pub seed: Seed,
}

impl Generate {
    /// Whether the images of both can be denoised in one batch, each with its own prompts and seeds.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        self.model == other.model
            && self.size == other.size
            && self.steps == other.steps
            && self.scheduler == other.scheduler
            && self.sampling == other.sampling
            && self.mode == other.mode
            && self.guidance_scale == other.guidance_scale
            && self.loras == other.loras
            && self.start == other.start
            && self.controls == other.controls
            && ImagePrompt::all_agree(&self.image_prompts, &other.image_prompts)
    }

    /// Pixels of all its images together.
    #[must_use]
    pub fn pixels(&self) -> u64 {
        u64::from(self.size.width_px()) * u64::from(self.size.height_px()) * u64::from(self.num_images.get())
    }
}

/// A LoRA file and how strongly it is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    pub url: AssetUrl,
    pub scale: LoraScale,
    pub alpha: LoraAlphaSource,
}

/// Where the alpha of a LoRA is, when its file does not say it.
#[derive(Debug, Clone, PartialEq)]
pub enum LoraAlphaSource {
    /// In the file, or (PEFT) in an `adapter_config.json` next to it.
    File,
    Given(LoraAlpha),
    /// In this `adapter_config.json`.
    Config(AssetUrl),
}

/// Name of a model manifest: 1 to 64 of `a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ModelName(String);

impl ModelName {
    /// # Errors
    /// Says what is allowed when `text` is not such a name.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_plain = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'));
        if (1..=64).contains(&text.len()) && is_plain && !text.starts_with('.') {
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

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&text(deserializer)?).map_err(de::Error::custom)
    }
}

/// What to generate, or (as `negative_prompt`) what to stay away from: at most 2,000 characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Prompt(String);

impl Prompt {
    pub const MAX_CHARS: usize = 2_000;

    /// # Errors
    /// Says the limit when `text` is longer.
    pub fn new(text: &str) -> Result<Self, String> {
        match text.chars().count() {
            0..=Self::MAX_CHARS => Ok(Self(text.to_owned())),
            chars => Err(format!("must be at most {} characters, got {chars}", Self::MAX_CHARS)),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&text(deserializer)?).map_err(de::Error::custom)
    }
}

/// Width and height in pixels, each a multiple of 8 from 64 to 2048.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    width_px: SidePx,
    height_px: SidePx,
}

impl Size {
    #[must_use]
    pub fn new(width_px: SidePx, height_px: SidePx) -> Self {
        Self { width_px, height_px }
    }

    #[must_use]
    pub fn width_px(self) -> u32 {
        self.width_px.get()
    }

    #[must_use]
    pub fn height_px(self) -> u32 {
        self.height_px.get()
    }
}

whole_number!(
    /// One side of an image in pixels.
    SidePx(u32), (64..=2048), "a multiple of 8 from 64 to 2048", multiple of 8
);
whole_number!(
    /// One side of an edited image in pixels: a token stands for 16x16.
    EditSidePx(u32), (64..=2048), "a multiple of 16 from 64 to 2048", multiple of 16
);
whole_number!(
    /// Denoising steps.
    StepCount(u32), (1..=200), "a whole number from 1 to 200"
);
whole_number!(
    /// Images of one job.
    ImageCount(u32), (1..=4), "a whole number from 1 to 4"
);
whole_number!(
    /// Where the noise comes from; below 2^53, so that it survives every JSON parser.
    Seed(u64), (0..=(1 << 53) - 1), "a whole number from 0 to 9007199254740991"
);

impl Seed {
    pub const ALLOWED: &str = "a whole number from 0 to 9007199254740991";
}

impl From<u32> for Seed {
    fn from(seed: u32) -> Self {
        Self(u64::from(seed))
    }
}

real_number!(
    /// Classifier-free guidance: up to 1 there is none (and no negative prompt).
    GuidanceScale, (0.0..=50.0), "a number from 0 to 50"
);
real_number!(
    /// How strongly a LoRA is applied.
    LoraScale, (-4.0..=4.0), "a number from -4 to 4"
);
real_number!(
    /// What a LoRA's matrices are multiplied by, divided by their rank.
    LoraAlpha, (f64::from_bits(1)..=65_536.0), "a number above 0, at most 65536"
);
real_number!(
    /// How much of an image that is started from is generated anew: the part of the steps that is done.
    Strength, (f64::MIN_POSITIVE..=1.0), "a number above 0, at most 1"
);
real_number!(
    /// 0 invisible to 1 solid.
    Opacity, (0.0..=1.0), "a number from 0 to 1"
);

real_number!(
    /// Height of a capital letter of the watermark, as a part of the image's shorter side.
    WatermarkSize, (0.01..=0.5), "a number from 0.01 to 0.5"
);

/// The artist's signature on every image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Watermark {
    pub text: String,
    pub position: Anchor,
    pub opacity: Opacity,
    /// None: what the function's configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<WatermarkSize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    TopLeft,
    Top,
    TopRight,
    Left,
    Center,
    Right,
    BottomLeft,
    Bottom,
    BottomRight,
}

impl LoraScale {
    #[must_use]
    pub fn one() -> Self {
        Self(1.0)
    }
}

impl Strength {
    /// What a start gets that says nothing else: with a mask all steps, since what is kept is kept by the mask.
    #[must_use]
    pub fn default_value(masked: bool) -> Self {
        Self(if masked { 1.0 } else { 0.8 })
    }
}

impl Opacity {
    /// What a watermark gets that says nothing else.
    #[must_use]
    pub fn default_value() -> Self {
        Self(0.6)
    }
}

impl ImageCount {
    #[must_use]
    pub fn one() -> Self {
        Self(1)
    }
}

impl Anchor {
    pub const NAMES: &str = "top-left, top, top-right, left, center, right, bottom-left, bottom, bottom-right";
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width_px(), self.height_px())
    }
}

/// To JSON 4.0 is the same number as 4, and some writers write it so.
fn whole_number(value: &Value) -> Option<u64> {
    const EXACT_BELOW: f64 = (1_u64 << 53) as f64;
    value.as_u64().or_else(|| {
        let real = value.as_f64()?;
        (real.fract() == 0.0 && (0.0..EXACT_BELOW).contains(&real)).then_some(real as u64)
    })
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        other => Err(de::Error::custom(format!("must be a text, got {}", shown::json(&other)))),
    }
}
