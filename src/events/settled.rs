//! What `atelier host` is told of every message: how its job ended, and the notifications that the host is to deliver.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Problem;
use crate::job::measured::Measured;
use crate::job::notification::Notification;

/// With this code a handler ends whose device is unusable: a fresh process is needed (`EX_TEMPFAIL` of sysexits.h).
pub const ENGINE_LOST_EXIT_CODE: u8 = 75;

/// One element of `jobs` in a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// Of the record in the event; empty for an HTTP request.
    pub message_id: String,
    /// Null when the job could not even be read that far.
    pub job_id: Option<String>,
    pub outcome: Settlement,
    /// The images were there already.
    pub replayed: bool,
    /// Of the last attempt, unless it is complete.
    pub error: Option<Problem>,
    /// To be delivered before the message is settled, in this order, each until it is taken.
    pub notifications: Vec<Notification>,
    /// None where the job was not run.
    pub measured: Option<Measured>,
}

/// What became of one message, and so what is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Settlement {
    /// Done: nothing more is to come of it.
    Complete,
    /// Given up: nothing more is to come of it, as no repetition helps.
    Failed,
    /// The queue is to bring it back.
    Retry,
    /// It might succeed later, but its attempts are used up: its caller hears that it failed, and the message goes where
    /// failed ones are kept.
    DeadLetter,
}

impl Settlement {
    /// Whether a queue is told of a failure.
    #[must_use]
    pub fn goes_back(self) -> bool {
        matches!(self, Self::Retry | Self::DeadLetter)
    }
}

impl Settlement {
    /// One word for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Retry => "retry",
            Self::DeadLetter => "dead_letter",
        }
    }
}

/// A partial batch failure (SQS): it holds what the queue is to bring back and nothing else.
#[must_use]
pub fn batch_reply(jobs: &[Settled]) -> Value {
    let back = jobs.iter().filter(|job| job.outcome.goes_back());
    let failures: Vec<Value> = back.map(|job| json!({ "itemIdentifier": job.message_id })).collect();
    json!({ "batchItemFailures": failures })
}

/// Adds to a reply what only the host reads.
#[must_use]
pub fn for_host(mut reply: Value, jobs: &[Settled]) -> Value {
    reply["jobs"] = json!(jobs);
    reply
}
