//! Reads out of an invocation's end what is to become of each of its messages.

use serde::Deserialize;
use serde_json::Value;

use super::held::Held;
use crate::host::answer::{Answer, reply_value};
use crate::host::supervisor::invoke::Ended;
use crate::job::outcome::JobError;

/// What is to become of one message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing more is to come of it, once these notices are delivered.
    Settled(Report),
    /// It failed this time. `report`: the handler's own words, with the notices of a last attempt.
    Failed { error: JobError, report: Option<Report> },
    /// No attempt was made.
    Untried,
}

/// What a handler that knows its host says of one message.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Report {
    pub(super) message_id: String,
    pub(super) outcome: Outcome,
    pub(super) error: Option<Value>,
    pub(super) notices: Vec<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    Complete,
    Failed,
    Retry,
}

/// One verdict a message, in their order.
pub(super) fn verdicts(held: &[Held], ended: &Ended) -> Vec<Verdict> {
    let all = |verdict: &dyn Fn() -> Verdict| held.iter().map(|_| verdict()).collect();
    match ended {
        Ended::Untried => all(&|| Verdict::Untried),
        Ended::Died(cause) => all(&|| {
            let problem = format!("the process that painted it died ({cause})");
            Verdict::Failed { error: JobError::HandlerDied { problem }, report: None }
        }),
        Ended::Answered(Answer::Error(error)) => all(&|| {
            let error = JobError::Internal { problem: format!("the function failed: {error}") };
            Verdict::Failed { error, report: None }
        }),
        Ended::Answered(Answer::Reply { body, http_stream }) => {
            let reply = reply_value(body, *http_stream);
            let failures = failures(held, &reply);
            held.iter().map(|held| verdict(held, &reply, failures.as_deref())).collect()
        }
    }
}

fn verdict(held: &Held, reply: &Value, failures: Option<&[String]>) -> Verdict {
    let id = &held.message.id;
    let report = reply["jobs"]
        .as_array()
        .into_iter()
        .flatten()
        .find_map(|report| Report::deserialize(report).ok().filter(|report| report.message_id == *id));
    // A reply with failures that cannot be read fails all of the batch, as it does with AWS.
    let failed = failures.is_none_or(|failures| failures.contains(id));
    match report {
        Some(report) if report.outcome != Outcome::Retry && !failed => Verdict::Settled(report),
        None if !failed => {
            Verdict::Settled(Report { message_id: id.clone(), outcome: Outcome::Complete, error: None, notices: Vec::new() })
        }
        report => {
            let told = report.as_ref().and_then(|report| report.error.as_ref()?["message"].as_str());
            let problem = told.unwrap_or("the function handed the message back").to_owned();
            Verdict::Failed { error: JobError::Internal { problem }, report }
        }
    }
}

/// The ids in `batchItemFailures`; none when the list cannot be read, or names a message that is not in the batch.
fn failures(held: &[Held], reply: &Value) -> Option<Vec<String>> {
    let failures = &reply["batchItemFailures"];
    if failures.is_null() {
        return Some(Vec::new());
    }
    let id = |failure: &Value| {
        let id = failure["itemIdentifier"].as_str()?;
        held.iter().any(|held| held.message.id == id).then(|| id.to_owned())
    };
    failures.as_array()?.iter().map(id).collect()
}
