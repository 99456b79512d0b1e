//! A notification as data: what someone is to be notified of. It holds no secret, so that one process can hand it to another.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::outcome::{JobError, StoredImage};
use super::request::Refusal;
use super::task::Task;
use super::task::tryon::Requester;
use super::trace::Trace;
use super::url::CallbackUrl;
use super::{Callback, Job, JobId};

/// Any process that has the configuration can send it, as often as needed: the same id and the same bytes each time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Notification {
    /// `webhook-id`: it depends on the job and the kind of notification alone, so that receivers can drop what they have seen. A job
    /// is known by its id, and by its prefix where that is not the default one.
    pub id: String,
    /// Goes along as `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
    #[serde(flatten)]
    pub message: Message,
}

/// To whom, and what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum Message {
    /// The operator's backend; `body` is JSON.
    Backend { kind: Kind, body: String },
    /// An address that the caller named; `body` is JSON.
    Callback { url: CallbackUrl, kind: Kind, body: String },
    /// The try-on service's asset service.
    AssetService(AssetResult),
    /// The try-on service's load balancer: notified once, and it does not matter whether it hears; `body` is JSON.
    LoadBalancer { body: String },
}

/// What a webhook is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[serde(rename = "inference.progress")]
    Progress,
    #[serde(rename = "inference.complete")]
    Complete,
    #[serde(rename = "inference.failed")]
    Failed,
}

impl Kind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }
}

/// A try-on's result for the asset service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AssetResult {
    pub job_id: String,
    pub requester: Requester,
    pub node_id: String,
    pub model_version: String,
    /// 0 when nothing was generated.
    pub inference_time_ms: u64,
    pub result: TryOnResult,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TryOnResult {
    /// The process that sends the notification fetches their bytes.
    Images(Vec<StoredImage>),
    Error(String),
}

/// Where the bytes of stored images come from.
#[async_trait]
pub trait Images: Send + Sync {
    /// # Errors
    /// [`JobError::Storage`] when the image could not be read.
    async fn bytes(&self, image: &StoredImage) -> Result<Vec<u8>, JobError>;
}

/// Of whom a notification speaks, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub struct NotificationTarget<'a> {
    pub job_id: Option<&'a JobId>,
    pub callback: Option<&'a Callback>,
    /// Of a try-on.
    pub requester: Option<&'a Requester>,
    pub trace: Option<Trace>,
    /// Object key prefix of the job where it is not the default one: jobs of one id may differ in it.
    pub prefix: Option<&'a str>,
    /// Of the request ([`Job::fingerprint`]).
    pub fingerprint: Option<&'a str>,
}

impl<'a> From<&'a Job> for NotificationTarget<'a> {
    fn from(job: &'a Job) -> Self {
        let requester = match &job.task {
            Task::Generate(_) | Task::Edit(_) => None,
            Task::TryOn(tryon) => Some(&tryon.requester),
        };
        Self {
            job_id: Some(&job.id),
            callback: job.callback.as_ref(),
            requester,
            trace: job.trace,
            prefix: job.output.own_prefix(),
            fingerprint: Some(&job.fingerprint),
        }
    }
}

impl<'a> From<&'a Refusal> for NotificationTarget<'a> {
    fn from(refusal: &'a Refusal) -> Self {
        let Refusal { job_id, callback, requester, trace, .. } = refusal;
        Self {
            job_id: job_id.as_ref(),
            callback: callback.as_ref(),
            requester: requester.as_ref(),
            trace: *trace,
            prefix: None,
            fingerprint: None,
        }
    }
}

impl Notification {
    /// Whether it is sent once, and it does not matter whether it is taken.
    #[must_use]
    pub fn is_best_effort(&self) -> bool {
        matches!(self.message, Message::LoadBalancer { .. })
    }

    /// One word for logs: `progress`, `complete`, `failed`, `asset_result` or `job_complete`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match &self.message {
            Message::Backend { kind, .. } | Message::Callback { kind, .. } => kind.as_str(),
            Message::AssetService(_) => "asset_result",
            Message::LoadBalancer { .. } => "job_complete",
        }
    }
}
