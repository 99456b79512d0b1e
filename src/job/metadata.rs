//! What a caller wants to have back: `callback.metadata`, kept as the JSON text that it came as.
//!
//! A parsed number would be a 64-bit one: 2^64 and more, and floats with many digits, would come back as others, and some could not be
//! parsed at all. So it is taken out of a body's text before that is parsed.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::outcome::JobError;

/// Of the metadata's JSON text.
const MAX_BYTES: usize = 64 << 10;

/// A JSON object as it was written.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct Metadata(Box<RawValue>);

/// As much of a job's body as is needed to find it.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    callback: Option<&'a RawValue>,
    /// Of an `EventBridge` event: the job.
    #[serde(borrow)]
    detail: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Callback<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

impl Metadata {
    /// Takes it out of the text of a job's body, or of an `EventBridge` event around one; an empty object is left there. None where
    /// there is none, or no object, or where the body is none that a job can be read from.
    #[must_use]
    pub fn taken_out(body: &[u8]) -> (Option<Self>, Cow<'_, [u8]>) {
        let found = std::str::from_utf8(body).ok().and_then(find);
        let Some(raw) = found.filter(|raw| raw.get().starts_with('{')) else { return (None, Cow::Borrowed(body)) };
        // It was borrowed from the body.
        let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
        let hollow = [&body[..start], b"{}", &body[start + raw.get().len()..]].concat();
        (Some(Self(raw.to_owned())), Cow::Owned(hollow))
    }

    /// Of what was parsed after all: a body that names a field twice.
    pub(super) fn of_parsed(parsed: Map<String, Value>) -> Self {
        Self(raw_of(&Value::Object(parsed)))
    }

    /// Every notification of a job and the handler's reply repeat it.
    ///
    /// # Errors
    /// Says how large it may be.
    pub(super) fn check(&self) -> Result<(), JobError> {
        match self.as_str().len() {
            0..=MAX_BYTES => Ok(()),
            bytes => {
                let problem = format!("must be at most {MAX_BYTES} bytes as JSON, got {bytes}");
                Err(JobError::Invalid { field: "callback.metadata".into(), problem })
            }
        }
    }

    /// The JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }
}

/// Where it lies in the text of a body.
fn find(body: &str) -> Option<&RawValue> {
    let read = |text| serde_json::from_str::<Body<'_>>(text).ok();
    let Body { callback, detail } = read(body)?;
    let callback = match callback {
        Some(callback) => callback,
        None => read(detail?.get())?.callback?,
    };
    serde_json::from_str::<Callback<'_>>(callback.get()).ok()?.metadata
}

impl Default for Metadata {
    fn default() -> Self {
        Self(raw_of(&Value::Object(Map::new())))
    }
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

fn raw_of(value: &Value) -> Box<RawValue> {
    // A value's own text is JSON.
    RawValue::from_string(value.to_string()).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
