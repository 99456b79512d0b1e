//! The field `lora` of tasks `generate` and `edit`.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Value, json};

use super::field;
use crate::job::outcome::JobError;
use crate::job::task::{Lora, LoraAlpha, LoraAlphaSource, LoraScale};
use crate::job::url::AssetUrl;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoraBody {
    url: AssetUrl,
    scale: Option<LoraScale>,
    alpha: Option<LoraAlpha>,
    config_url: Option<AssetUrl>,
}

impl LoraBody {
    fn read(self, index: usize) -> Result<Lora, JobError> {
        let alpha = match (self.alpha, self.config_url) {
            (None, None) => LoraAlphaSource::File,
            (Some(alpha), None) => LoraAlphaSource::Given(alpha),
            (None, Some(url)) => LoraAlphaSource::Config(url),
            (Some(_), Some(_)) => {
                let problem = "and config_url say the same twice: give one of them".into();
                return Err(JobError::Invalid { field: format!("lora[{index}].alpha"), problem });
            }
        };
        Ok(Lora { url: self.url, scale: self.scale.unwrap_or_else(LoraScale::one), alpha })
    }
}

/// # Errors
/// [`JobError::Invalid`] of the first that says its alpha twice.
pub(super) fn read(bodies: Vec<LoraBody>) -> Result<Vec<Lora>, JobError> {
    bodies.into_iter().enumerate().map(|(index, lora)| lora.read(index)).collect()
}

/// What decides the images. What came later is there only where it is used: the fingerprint of older jobs must stay what it was.
pub(super) fn canonical(lora: &Lora) -> Value {
    let url = lora.url.identity();
    let scale = lora.scale.get();
    match &lora.alpha {
        LoraAlphaSource::File => json!([url, scale]),
        LoraAlphaSource::Given(alpha) => json!([url, scale, { "alpha": alpha }]),
        LoraAlphaSource::Config(config) => json!([url, scale, { "config_url": config.identity() }]),
    }
}

pub(super) fn loras<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LoraBody>, D::Error> {
    at_most_eight(field::or_default(deserializer)?)
}

pub(super) fn at_most_eight<T, E: de::Error>(files: Vec<T>) -> Result<Vec<T>, E> {
    const MAX: usize = 8;
    if files.len() <= MAX { Ok(files) } else { Err(E::custom(format!("must be at most {MAX}, got {}", files.len()))) }
}
