//! What a handler's reply reports to its host of every message: how its job ended, and the notifications that are to be delivered.
//!
//! Next to the reply's own members stand `protocol`, the version, and `jobs`, an element for each message in their order.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Mismatch, VERSION};
use crate::job::measured::Measured;
use crate::job::notification::Notification;
use crate::job::outcome::Problem;

const PROTOCOL: &str = "protocol";
const JOBS: &str = "jobs";

/// One element of `jobs` in a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// What the host calls the message in the event; empty for an HTTP request.
    pub message_id: String,
    /// Null when the job could not even be read that far.
    pub job_id: Option<String>,
    pub outcome: JobOutcome,
    /// The images were there already.
    pub replayed: bool,
    /// Of the last attempt, unless it is complete.
    pub error: Option<Problem>,
    /// To be delivered before the message is settled, in this order, each until it is taken.
    pub notifications: Vec<Notification>,
    /// None where the job was not run.
    pub measured: Option<Measured>,
}

impl JobReport {
    /// Whether the request itself was at fault, and nothing was generated for it.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        let is_final = matches!(self.outcome, JobOutcome::Failed | JobOutcome::DeadLetter);
        let at_fault =
            self.error.as_ref().is_some_and(|error| ["invalid_request", "invalid_input"].contains(&error.code.as_str()));
        is_final && at_fault && self.measured.as_ref().is_none_or(|measured| measured.denoising_steps == 0)
    }
}

/// What became of one message, and so what is to become of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// Done: nothing more is to come of it.
    Complete,
    /// Given up: nothing more is to come of it, as no repetition helps.
    Failed,
    /// The queue is to bring it back.
    Retry,
    /// As `Retry`, when the store is there again: it was no attempt, whatever the queue counts, and nobody is told.
    StoreUnavailable,
    /// As `Retry`, when the moderator gives answers again: it was no attempt either.
    ModerationUnavailable,
    /// As `Retry`, when a step of the user's own gives answers again: it was no attempt either.
    StepUnavailable,
    /// It might succeed later, but its attempts are used up: its caller hears that it failed, and the message goes where
    /// failed ones are kept.
    DeadLetter,
}

impl JobOutcome {
    /// Whether a failure is reported to the queue.
    #[must_use]
    pub fn goes_back(self) -> bool {
        !self.is_over() || self == Self::DeadLetter
    }

    /// Whether somebody is told of it: else the message comes back.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Retry | Self::StoreUnavailable | Self::ModerationUnavailable | Self::StepUnavailable)
    }

    /// One word for metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Retry => "retry",
            Self::StoreUnavailable => "store_unavailable",
            Self::ModerationUnavailable => "moderation_unavailable",
            Self::StepUnavailable => "step_unavailable",
            Self::DeadLetter => "dead_letter",
        }
    }
}

/// Adds to a reply what only the host reads.
#[must_use]
pub fn encode(mut reply: Value, jobs: &[JobReport]) -> Value {
    reply[PROTOCOL] = VERSION.into();
    reply[JOBS] = json!(jobs);
    reply
}

/// Whether a handler of ours wrote the reply, of whatever version.
#[must_use]
pub fn is_ours(reply: &Value) -> bool {
    reply.get(PROTOCOL).is_some()
}

/// What a handler says of its messages; empty for a reply that names no version, which is another function's.
///
/// # Errors
/// [`Unreadable`] when the handler speaks another version, or not as its version says.
pub fn decode(reply: &Value) -> Result<Vec<JobReport>, Unreadable> {
    match reply.get(PROTOCOL) {
        None => Ok(Vec::new()),
        Some(version) if *version == VERSION => Ok(Vec::deserialize(&reply[JOBS])?),
        Some(version) => Err(Mismatch { host: VERSION.to_string(), handler: version.to_string() }.into()),
    }
}

/// A reply in which a host cannot read what became of its messages.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("`jobs` of the handler's reply: {0}")]
    Malformed(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::notification::{Kind, Message};
    use crate::job::trace::Trace;

    #[test]
    fn a_reply_is_read_as_it_was_written() {
        let trace = Trace::from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let notification =
            Notification { id: "msg_1".into(), trace, message: Message::Backend { kind: Kind::Failed, body: "{}".into() } };
        let problem = Problem {
            code: "invalid_input".into(),
            message: "steps: must be 1 to 150".into(),
            field: Some("steps".into()),
            category: None,
        };
        let job = |message_id: &str, outcome, error, notifications| JobReport {
            message_id: message_id.into(),
            job_id: Some("job-1".into()),
            outcome,
            replayed: false,
            error,
            notifications,
            measured: Some(Measured::default()),
        };
        let jobs = [
            job("1", JobOutcome::Complete, None, Vec::new()),
            job("2", JobOutcome::Failed, Some(problem.clone()), vec![notification.clone()]),
            job("3", JobOutcome::Retry, Some(problem), Vec::new()),
            job("4", JobOutcome::DeadLetter, None, vec![notification]),
            job("5", JobOutcome::StoreUnavailable, None, Vec::new()),
            job("6", JobOutcome::ModerationUnavailable, None, Vec::new()),
            job("7", JobOutcome::StepUnavailable, None, Vec::new()),
        ];
        let reply = encode(json!({ "batchItemFailures": [] }), &jobs);
        assert_eq!(reply["protocol"], 2);
        assert_eq!(decode(&reply).unwrap(), jobs);
    }

    #[test]
    fn a_function_that_names_no_version_is_somebody_elses() {
        for reply in [json!(null), json!("done"), json!({}), json!({ "jobs": [{ "state": "of theirs" }] }), json!([1])] {
            assert_eq!(decode(&reply).unwrap(), [], "{reply}");
        }
    }

    #[test]
    fn another_version_names_both_and_a_broken_reply_is_no_word_at_all() {
        let error = decode(&json!({ "protocol": 3, "jobs": [] })).unwrap_err().to_string();
        assert!(error.contains("version 2 of") && error.contains("speaks version 3"), "{error}");
        let error = decode(&json!({ "protocol": 2, "jobs": [{}] })).unwrap_err().to_string();
        assert!(error.contains("message_id"), "{error}");
        assert!(decode(&json!({ "protocol": 2 })).is_err());
    }
}
