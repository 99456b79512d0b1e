//! Whether the content credentials in a file verify, and what they say.

use std::io::Cursor;

use c2pa::{Error, Reader, ValidationState};
use serde::Serialize;
use serde_json::Value;

use super::context::context;

/// The signer's root is none of those that are trusted.
pub const UNTRUSTED: &str = "signingCredential.untrusted";

/// What verification came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing was changed since it was signed, and a root that is trusted stands behind the signer.
    Trusted,
    /// Nothing was changed since it was signed; no one was named who is to be trusted, or it is not one of them.
    Valid,
    /// It was changed, or was never right.
    Invalid,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// C2PA's status code.
    pub code: String,
    pub explanation: String,
}

/// The credentials of a file.
#[derive(Debug, Clone, Serialize)]
pub struct Credentials {
    pub state: State,
    pub failures: Vec<Failure>,
    /// The manifests, as C2PA's tools print them.
    pub manifests: Value,
}

/// Reads what is in `file`; none: it has no credentials. `format`: its media type. `trust_anchors`: PEM of the roots that are trusted.
///
/// # Errors
/// In words, when the credentials cannot be read at all.
pub fn verify(file: &[u8], format: &str, trust_anchors: Option<&str>) -> Result<Option<Credentials>, String> {
    let context = context(trust_anchors)?;
    let reader = match Reader::from_context(context).with_stream(format, Cursor::new(file)) {
        Ok(reader) => reader,
        Err(Error::JumbfNotFound | Error::ProvenanceMissing) => return Ok(None),
        Err(error) => return Err(format!("the content credentials cannot be read: {error}")),
    };
    let state = match reader.validation_state() {
        ValidationState::Trusted => State::Trusted,
        ValidationState::Valid => State::Valid,
        ValidationState::Invalid => State::Invalid,
    };
    let failures = reader.validation_status().unwrap_or_default().iter().map(|status| Failure {
        code: status.code().to_owned(),
        explanation: status.explanation().unwrap_or_default().to_owned(),
    });
    let failures = failures.collect();
    let manifests = serde_json::from_str(&reader.json()).unwrap_or(Value::Null);
    Ok(Some(Credentials { state, failures, manifests }))
}
