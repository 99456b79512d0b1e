//! What settings of every part share: secrets that stay out of logs, and the error that names a wrong setting.

use std::fmt;

use serde::Deserialize;
use subtle::ConstantTimeEq as _;

use crate::shown;

/// A setting that must never reach a log: its `Debug` form hides the text.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The text itself, for the one place that sends or checks it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `given` is this secret, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, given: &[u8]) -> bool {
        given.ct_eq(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// A setting that cannot be used; found at start, before the first job.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{setting}: {problem}")]
pub struct SettingError {
    /// Key in config.yaml, such as `store.bucket`.
    pub setting: String,
    pub problem: String,
}

impl SettingError {
    #[must_use]
    pub fn new(setting: &str, problem: impl Into<String>) -> Self {
        Self { setting: setting.to_owned(), problem: problem.into() }
    }
}

/// # Errors
/// When `address` is there and is no `http` or `https` address.
pub fn check_address(setting: &str, address: Option<&str>) -> Result<(), SettingError> {
    let Some(address) = address else { return Ok(()) };
    if url::Url::parse(address).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
        return Ok(());
    }
    Err(SettingError::new(setting, format!("must be an address such as http://127.0.0.1:9000, got {}", shown::text(address))))
}
