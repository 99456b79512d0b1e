//! How a job ends: the record of what was generated, or an error that says whether trying again can help.

use std::collections::BTreeMap;
use std::error::Error as StdError;

use serde::{Deserialize, Serialize};

use super::JobId;
use super::consent::Consent;
use super::safety::{Block, Safety, Stage};
use super::task::auto_mask::MadeMask;
use super::task::sampling::StepCache;
use super::task::upscale::Upscaler;
use super::trace::Trace;

/// [`JobError::code`] of a request under another job's id.
pub const CONFLICT: &str = "conflict";
/// [`JobError::code`] of a job that the safety gate does not let through.
pub const CONTENT_BLOCKED: &str = "content_blocked";
/// [`JobError::code`] of a job that nobody could judge.
pub const MODERATION_UNAVAILABLE: &str = "moderation_unavailable";
/// [`JobError::code`] of a request that no attempt would take.
const INVALID_REQUEST: &str = "invalid_request";

pub type Cause = Box<dyn StdError + Send + Sync>;

/// What `result.json` holds: the proof that a job is done. Written last, never changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub job_id: String,
    pub fingerprint: String,
    pub model: String,
    /// Of the model's weights, as its manifest names it; records of earlier releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Called `pictures` in records that were written before 0.1.0.
    #[serde(alias = "pictures")]
    pub images: Vec<StoredImage>,
    /// How it came about, beyond the request.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Milliseconds spent in each workflow step up to storing the images.
    pub timings_ms: BTreeMap<String, u64>,
    /// Seconds since 1970-01-01T00:00:00Z.
    pub finished_at_s: u64,
}

/// What a record says of how its images came about; records of earlier releases say nothing of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Of the message that the job came in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
    /// To the use of a person's image, as the job has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<Consent>,
    /// Who looked at the job, and what they found; none: nobody was asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety: Option<Safety>,
    /// Steps of the user's own that the images have passed, in their order, as `workflow.steps` names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user_steps: Vec<String>,
    /// Of the content credentials in the images; none: they have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// As the job has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_cache: Option<StepCache>,
    /// What enlarged the images after they were generated, or edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upscaler: Option<Upscaler>,
    /// The mask that was made of the person's image, where the job asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_mask: Option<Box<MadeMask>>,
    /// SHA-256 of the model's manifest, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// SHA-256 of the model's files, in hex, as far as its manifest pins them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub model_files: BTreeMap<String, String>,
}

/// One image in the bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredImage {
    pub bucket: String,
    pub key: String,
    pub content_type: String,
    pub width_px: u32,
    pub height_px: u32,
    pub bytes: u64,
    pub seed: u64,
    /// Of the file, in hex; records of earlier releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Records of earlier releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invisible_mark: Option<InvisibleMark>,
}

/// Whether the pixels of an image have the invisible mark.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvisibleMark {
    pub embedded: bool,
    /// Where it is not: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Who has signed the images of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// Of the certificate that signs.
    pub subject: String,
    /// SHA-256 of that certificate (DER), in hex.
    pub certificate_sha256: String,
}

/// How a job that did not fail ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub record: Record,
    /// The images were there already: nothing was generated this time.
    pub replayed: bool,
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPolicy {
    /// The same job can succeed later: hand the message back.
    Retry,
    /// The store, the moderator or a step of the user's own does not do what it is asked, and no job is at fault: wait for it, however long that takes. It is no
    /// attempt.
    Wait,
    /// No repetition helps: notify the caller and be done.
    Terminal,
}

/// Why a job has no images (yet).
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    #[error(
        "job_id: {job_id} already belongs to a job with another request; send the same request again to get its images, \
         or choose another job_id"
    )]
    Conflict { job_id: JobId },
    /// An input that was named well but cannot be used: not there, forbidden, too large, not what it should be.
    #[error("{field}: {problem}")]
    Input {
        field: String,
        problem: String,
        #[source]
        cause: Option<Cause>,
    },
    /// An input that could not be fetched this time.
    #[error("{field}: could not be fetched: {problem}")]
    Fetch {
        field: String,
        problem: String,
        #[source]
        cause: Option<Cause>,
    },
    #[error("out of GPU memory: {problem}")]
    OutOfMemory { problem: String },
    /// What the model computed is no image: NaN or infinity. It would be so again.
    #[error("no finite image: {problem}")]
    NotFinite { problem: String },
    #[error("generation failed: {problem}")]
    Generation {
        problem: String,
        #[source]
        cause: Option<Cause>,
    },
    /// The engine's process is of no more use; the job may be as innocent as the next.
    #[error("the GPU failed and this process can use it no more: {problem}; another process is started")]
    FatalDeviceError { problem: String },
    /// An image was made and cannot be signed. It goes nowhere unsigned.
    #[error("content credentials: {problem}")]
    Signing { problem: String },
    /// It is not to be generated, or not to be shown.
    #[error("{0}")]
    Blocked(Block),
    /// Nobody could say whether it may be generated, or shown.
    #[error("the moderator gave no answer, and nothing is generated or stored without one: {problem}")]
    ModerationUnavailable { problem: String },
    /// A step of the user's own has ended the job.
    #[error("{step}: refused: {reason}")]
    StepRefused { step: String, reason: String },
    /// A step of the user's own answered nothing that can be used.
    #[error("{step} {problem}; no image leaves without its answer")]
    StepFailed { step: String, problem: String },
    /// A step of the user's own is away.
    #[error("{problem}, and nothing is stored without the answer of {step}")]
    StepUnavailable { step: String, problem: String },
    #[error("the job was cancelled")]
    Cancelled,
    #[error("the invocation's deadline came before the job was done")]
    DeadlineExceeded,
    #[error("the function is shutting down; the job was handed back")]
    ShuttingDown,
    #[error("storage: {problem}")]
    Storage {
        problem: String,
        retry_policy: RetryPolicy,
        #[source]
        cause: Option<Cause>,
    },
    #[error("the notification could not be delivered: {problem}")]
    Notification {
        problem: String,
        #[source]
        cause: Option<Cause>,
    },
    /// While this attempt ran, another one ended the job as failed, and its caller was told so.
    #[error("{}", problem.message)]
    FailedBeside { problem: Problem },
    /// The process that generated died over the job.
    #[error("{problem}")]
    HandlerDied { problem: String },
    #[error("internal error: {problem}")]
    Internal { problem: String },
}

impl JobError {
    #[must_use]
    pub fn retry_policy(&self) -> RetryPolicy {
        match self {
            Self::Invalid { .. }
            | Self::Conflict { .. }
            | Self::Input { .. }
            | Self::OutOfMemory { .. }
            | Self::NotFinite { .. }
            | Self::FailedBeside { .. }
            | Self::Blocked(_)
            | Self::StepRefused { .. }
            | Self::Cancelled => RetryPolicy::Terminal,
            Self::ModerationUnavailable { .. } | Self::StepUnavailable { .. } => RetryPolicy::Wait,
            Self::Storage { retry_policy, .. } => *retry_policy,
            Self::Fetch { .. }
            | Self::Generation { .. }
            | Self::FatalDeviceError { .. }
            | Self::Signing { .. }
            | Self::StepFailed { .. }
            | Self::DeadlineExceeded
            | Self::ShuttingDown
            | Self::Notification { .. }
            | Self::HandlerDied { .. }
            | Self::Internal { .. } => RetryPolicy::Retry,
        }
    }

    /// A stable word for programs; part of the `failed` notification.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Invalid { .. } => INVALID_REQUEST,
            Self::Conflict { .. } => CONFLICT,
            Self::Input { .. } => "invalid_input",
            Self::Fetch { .. } => "fetch_failed",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::NotFinite { .. } => "not_finite",
            Self::Generation { .. } => "inference_failed",
            Self::FatalDeviceError { .. } => "gpu_failed",
            Self::Signing { .. } => "signing_failed",
            Self::Blocked(_) => CONTENT_BLOCKED,
            Self::ModerationUnavailable { .. } => MODERATION_UNAVAILABLE,
            Self::StepRefused { .. } => "step_refused",
            Self::StepFailed { .. } => "step_failed",
            Self::StepUnavailable { .. } => "step_unavailable",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::ShuttingDown => "shutting_down",
            Self::Storage { .. } => "storage_failed",
            Self::Notification { .. } => "webhook_failed",
            Self::FailedBeside { problem } => &problem.code,
            Self::HandlerDied { .. } => "handler_died",
            Self::Internal { .. } => "internal",
        }
    }

    /// The request field at fault, where there is one.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Invalid { field, .. } | Self::Input { field, .. } | Self::Fetch { field, .. } => Some(field),
            Self::Conflict { .. } => Some("job_id"),
            Self::FailedBeside { problem } => problem.field.as_deref(),
            Self::Blocked(block) if block.stage != Stage::Image => block.field.as_deref(),
            _ => None,
        }
    }

    /// Of what is not allowed.
    #[must_use]
    pub fn category(&self) -> Option<&str> {
        match self {
            Self::Blocked(block) => Some(&block.category),
            Self::FailedBeside { problem } => problem.category.as_deref(),
            _ => None,
        }
    }
}

/// An error as callers see it in a reply or notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word, such as `invalid_input`.
    pub code: String,
    pub message: String,
    /// The field of the request that is at fault, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Of [`CONTENT_BLOCKED`]: one word, such as `nude`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
}

impl Problem {
    /// Whether it is that of a request under another job's id: no end of that job.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code == CONFLICT
    }

    /// Whether every attempt comes to it, so that none beside this one can end otherwise.
    #[must_use]
    pub fn is_of_the_request(&self) -> bool {
        self.code == INVALID_REQUEST
    }
}

impl From<&JobError> for Problem {
    fn from(error: &JobError) -> Self {
        Self {
            code: error.code().to_owned(),
            message: error.to_string(),
            field: error.field().map(str::to_owned),
            category: error.category().map(str::to_owned),
        }
    }
}
