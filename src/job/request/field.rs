//! Fields of job bodies that are more than a type: each read with an error that says what is allowed.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use crate::job::task::auto_mask::Garment;
use crate::job::task::edit::EditImages;
use crate::job::task::scheduler::Scheduler;
use crate::job::task::tryon::{Garments, Mode, Requester, Resolution};
use crate::job::task::{Anchor, GuidanceScale};
use crate::job::url::AssetUrl;
use crate::job::{ImageFormat, JobId, MetadataLevel};
use crate::shown;

/// An image that a job names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageBody {
    pub(super) url: AssetUrl,
}

fn checked<'de, D: Deserializer<'de>, T>(deserializer: D, read: impl FnOnce(&str) -> Result<T, String>) -> Result<T, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => read(&text).map_err(de::Error::custom),
        other => Err(de::Error::custom(format!("must be a text, got {}", shown::json(&other)))),
    }
}

/// Null for an optional field is as good as nothing: so it is for every `Option`, and by this for every field that has a default.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// One of `names`, or nothing.
pub(super) fn named<'de, D, T>(deserializer: D, names: &str) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: de::DeserializeOwned,
{
    let value = Value::deserialize(deserializer)?;
    let got = shown::json(&value);
    serde_json::from_value(value).map_err(|_| de::Error::custom(format!("must be one of {names} or null, got {got}")))
}

pub(super) fn job_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobId, D::Error> {
    checked(deserializer, JobId::new)
}

pub(super) fn scheduler<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Scheduler>, D::Error> {
    Option::<Scheduler>::deserialize(deserializer)
}

/// Of a try-on: its models have no use for less guidance than none.
pub(super) fn tryon_guidance_scale<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<GuidanceScale>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if value.is_null() {
        return Ok(None);
    }
    let scale = value.as_f64().filter(|scale| *scale >= 1.0).and_then(|scale| GuidanceScale::new(scale).ok());
    scale.map(Some).ok_or_else(|| de::Error::custom(format!("must be a number from 1 to 50, got {}", shown::json(&value))))
}

pub(super) fn anchor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Anchor>, D::Error> {
    named(deserializer, Anchor::NAMES)
}

pub(super) fn format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ImageFormat>, D::Error> {
    named(deserializer, "png, jpeg, webp")
}

pub(super) fn metadata_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MetadataLevel>, D::Error> {
    named(deserializer, MetadataLevel::NAMES)
}

pub(super) fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mode>, D::Error> {
    named(deserializer, Mode::NAMES)
}

pub(super) fn resolution<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Resolution>, D::Error> {
    named(deserializer, Resolution::NAMES)
}

pub(super) fn garment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Garment>, D::Error> {
    named(deserializer, Garment::NAMES)
}

pub(super) fn garments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Garments, D::Error> {
    Garments::new(Vec::<AssetUrl>::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn edit_images<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EditImages, D::Error> {
    EditImages::new(Vec::<AssetUrl>::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn passed_through<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    const MAX: usize = Requester::MAX_CHARS;
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => match text.chars().count() {
            0..=MAX => Ok(Some(text)),
            chars => Err(de::Error::custom(format!("must be at most {MAX} characters, got {chars}"))),
        },
        other => Err(de::Error::custom(format!("must be a text or null, got {}", shown::json(&other)))),
    }
}

pub(super) fn watermark_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, |text| match text.chars().count() {
        1..=120 if text.chars().all(|c| !c.is_control()) => Ok(text.to_owned()),
        chars => Err(format!("must be 1 to 120 characters without line breaks, got {chars}")),
    })
}

pub(super) fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        given => checked(given, tidy_prefix).map(Some).map_err(de::Error::custom),
    }
}

pub(crate) fn tidy_prefix(text: &str) -> Result<String, String> {
    let tidy = text.is_empty() || (text.ends_with('/') && !text.starts_with('/'));
    let parts = text.split('/').all(|part| part != "." && part != "..") && !text.contains("//");
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '='));
    if text.len() <= 512 && tidy && parts && plain {
        return Ok(text.to_owned());
    }
    Err(format!(
        "must be at most 512 of the characters A-Z a-z 0-9 . _ - = / , end in a slash and hold no empty, . or .. part, got {}",
        shown::text(text)
    ))
}
