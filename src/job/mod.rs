//! What a job is: the ground that every other module stands on.

pub mod capabilities;
pub mod consent;
mod inputs;
pub mod measured;
pub mod metadata;
pub mod notification;
pub mod outcome;
pub mod request;
pub mod safety;
pub mod segmenter;
mod signature;
pub mod task;
pub mod trace;
pub mod upscalers;
pub mod url;
pub mod user_step;

use std::fmt;

use serde::{Deserialize, Serialize};

use self::consent::Consent;
use self::metadata::Metadata;
use self::task::upscale::Upscale;
use self::task::{Task, Watermark};
use self::trace::Trace;
use self::url::CallbackUrl;
use crate::shown;

/// One accepted job: parsed, checked and complete, defaults filled in.
#[derive(Debug, Clone)]
pub struct Job {
    pub id: JobId,
    pub task: Task,
    /// By how much the images are enlarged after that; none: they stay what they are.
    pub upscale: Option<Upscale>,
    pub watermark: Option<Watermark>,
    pub output: Output,
    /// To the use of a person's image.
    pub consent: Option<Consent>,
    pub callback: Option<Callback>,
    /// Among whom queues are fair, where they can be: `tenant`, else the `user_id` of the form, else that of `callback.metadata`.
    pub tenant: Option<String>,
    /// Hex SHA-256 over everything that decides the images and where they go (not the callback): two requests are the
    /// same request when their fingerprints are equal.
    pub fingerprint: String,
    /// Of the message that it came in, not of its body.
    pub trace: Option<Trace>,
}

/// Directories of the results bucket that are the function's own: no job's results lie there.
pub const OWN_DIRECTORIES: [&str; 3] = ["dead", "idempotency", "inputs"];

impl Job {
    /// Whether the images of both can be denoised in one batch. Never so for two deliveries of one job: the second is a replay
    /// of the first.
    #[must_use]
    pub fn shares_batch_with(&self, other: &Self) -> bool {
        match (&self.task, &other.task) {
            (Task::Generate(one), Task::Generate(another)) => self.id != other.id && one.agrees_with(another),
            _ => false,
        }
    }
}

/// The caller's name for a job: 1 to 128 of `A-Z a-z 0-9 . _ -`, not starting with a dot, so that it is safe as one part
/// of an object key and of a URL path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// # Errors
    /// Says what is allowed when `text` is not such a name.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        if (1..=128).contains(&text.len()) && is_plain && !text.starts_with('.') {
            return Ok(Self(text.to_owned()));
        }
        let what = "must be 1 to 128 of the characters A-Z a-z 0-9 . _ - and not start with a dot";
        Err(format!("{what}, got {}", shown::text(text)))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the images go and as what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Output {
    /// Object key prefix, either empty or ending in `/`.
    pub prefix: String,
    pub format: ImageFormat,
    /// What the files say of how they were made; none: what the configuration says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<MetadataLevel>,
    /// Whether the prefix is the one that jobs get which name none: it says nothing of the request.
    #[serde(skip)]
    pub is_default_prefix: bool,
}

impl Output {
    /// The prefix where it distinguishes two jobs of one id: none for the default one.
    #[must_use]
    pub fn own_prefix(&self) -> Option<&str> {
        (!self.is_default_prefix).then_some(self.prefix.as_str())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    Png,
    Jpeg,
    Webp,
}

impl ImageFormat {
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::Webp => "webp",
        }
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// What an image file says of how it was made. That a model made it stands in every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetadataLevel {
    /// The job's parameters as well: prompts, LoRAs, addresses of inputs.
    Full,
    /// The model and where the record lies, and what its inputs say of themselves.
    Minimal,
    /// Nothing but the mark.
    None,
}

impl MetadataLevel {
    pub const NAMES: &str = "full, minimal, none";
}

/// Whom to notify, when it is not the configured backend. `metadata` is handed back untouched in every notification.
#[derive(Debug, Clone, PartialEq)]
pub struct Callback {
    pub url: Option<CallbackUrl>,
    pub metadata: Metadata,
}
