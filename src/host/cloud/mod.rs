//! What the cloud around the host wants to know, and what it says: protection from scale-in, notice of an interruption.

pub mod interruption;
pub mod protection;

use std::time::Duration;

use crate::authorities;
use crate::setting::SettingError;
use crate::shown;

/// A client for addresses on this machine alone: no proxy stands before them, and they lead nowhere else.
fn client(setting: &str, timeout: Duration) -> Result<reqwest::Client, SettingError> {
    authorities::client()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .build()
        .map_err(|error| SettingError::new(setting, format!("the HTTP client could not be set up: {error:?}")))
}

/// The deepest cause, in words.
fn problem(error: &reqwest::Error) -> String {
    if error.is_timeout() { "no answer in time".to_owned() } else { shown::deepest_cause(error).to_string() }
}
