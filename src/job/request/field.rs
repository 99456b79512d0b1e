//! Fields of job bodies that are more than a type: each read with an error that says what is allowed.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

use crate::job::shown::shown;
use crate::job::task::tryon::{Garments, Mode, Requester, Resolution};
use crate::job::task::{Anchor, Scheduler};
use crate::job::url::{AssetUrl, CallbackUrl};
use crate::job::{ImageFormat, JobId};

fn checked<'de, D: Deserializer<'de>, T>(deserializer: D, read: impl FnOnce(&str) -> Result<T, String>) -> Result<T, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => read(&text).map_err(de::Error::custom),
        other => Err(de::Error::custom(format!("must be a text, got {}", shown(&other)))),
    }
}

fn named<'de, D: Deserializer<'de>, T: de::DeserializeOwned>(deserializer: D, names: &str) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let got = shown(&value);
    serde_json::from_value(value).map_err(|_| de::Error::custom(format!("must be one of {names}, got {got}")))
}

/// As [`named`], and null is as good as nothing.
fn named_or_null<'de, D, T>(deserializer: D, names: &str) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: de::DeserializeOwned,
{
    named(deserializer, &format!("{names} or null"))
}

pub(super) fn job_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobId, D::Error> {
    checked(deserializer, JobId::new)
}

pub(super) fn callback_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<CallbackUrl>, D::Error> {
    CallbackUrl::deserialize(deserializer).map(Some)
}

pub(super) fn scheduler<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Scheduler>, D::Error> {
    named(deserializer, Scheduler::NAMES).map(Some)
}

pub(super) fn anchor<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Anchor>, D::Error> {
    named(deserializer, Anchor::NAMES).map(Some)
}

pub(super) fn format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ImageFormat>, D::Error> {
    named(deserializer, "png, jpeg, webp").map(Some)
}

pub(super) fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mode>, D::Error> {
    named_or_null(deserializer, Mode::NAMES)
}

pub(super) fn resolution<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Resolution>, D::Error> {
    named_or_null(deserializer, Resolution::NAMES)
}

pub(super) fn garments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Garments, D::Error> {
    Garments::new(Vec::<AssetUrl>::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn passed_through<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    const MOST: usize = Requester::MAX_CHARS;
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => match text.chars().count() {
            0..=MOST => Ok(Some(text)),
            chars => Err(de::Error::custom(format!("must be at most {MOST} characters, got {chars}"))),
        },
        other => Err(de::Error::custom(format!("must be a text or null, got {}", shown(&other)))),
    }
}

/// Every notification of a job and the handler's reply repeat it.
pub(super) fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    const MAX_BYTES: usize = 64 << 10;
    let metadata = Map::deserialize(deserializer)?;
    match serde_json::to_string(&metadata).map_err(de::Error::custom)?.len() {
        0..=MAX_BYTES => Ok(metadata),
        bytes => Err(de::Error::custom(format!("must be at most {MAX_BYTES} bytes as JSON, got {bytes}"))),
    }
}

pub(super) fn watermark_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, |text| match text.chars().count() {
        1..=120 if text.chars().all(|c| !c.is_control()) => Ok(text.to_owned()),
        chars => Err(format!("must be 1 to 120 characters without line breaks, got {chars}")),
    })
}

pub(super) fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    checked(deserializer, |text| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '=');
        let tidy = text.is_empty() || (text.ends_with('/') && !text.starts_with('/'));
        let parts = text.split('/').all(|part| part != "." && part != "..") && !text.contains("//");
        if text.len() <= 512 && tidy && parts && text.chars().all(plain) {
            Ok(Some(text.to_owned()))
        } else {
            Err(format!(
                "must be at most 512 of the characters A-Z a-z 0-9 . _ - = / , end in a slash and hold no empty, . or .. part, \
                 got {}",
                shown(&Value::from(text))
            ))
        }
    })
}
