//! Reads out of an invocation's end what is to become of each of its messages.

use serde_json::Value;

use crate::host::answer::{Answer, Ended, reply_value};
use crate::host::in_flight::InFlight;
use crate::job::outcome::JobError;
use crate::protocol::reply::{self, JobReport};

/// What is to become of one message.
#[derive(Debug)]
pub(super) enum Disposition {
    /// What a handler that knows its host says.
    Reported(JobReport),
    /// A function that knows nothing of its host took the message.
    Taken,
    /// The handler died over the message, or the function failed it without a word to its caller.
    Failed(JobError),
    /// No attempt was made.
    Untried,
}

/// One disposition per message, in their order.
pub(super) fn dispositions(in_flight: &[InFlight], ended: &Ended) -> Vec<Disposition> {
    let all = |disposition: &dyn Fn() -> Disposition| in_flight.iter().map(|_| disposition()).collect();
    match ended {
        Ended::Untried => all(&|| Disposition::Untried),
        Ended::Died(cause) => all(&|| {
            let problem = format!("the process that generated it died ({cause})");
            Disposition::Failed(JobError::HandlerDied { problem })
        }),
        Ended::Answered(Answer::Error(error)) => {
            all(&|| Disposition::Failed(JobError::Internal { problem: format!("the function failed: {error}") }))
        }
        Ended::Answered(Answer::Reply { body, http_stream }) => {
            let reply = reply_value(body, *http_stream);
            match reply::decode(&reply) {
                Ok(reports) => {
                    let failures = failures(in_flight, &reply);
                    in_flight.iter().map(|in_flight| disposition(in_flight, &reports, failures.as_deref())).collect()
                }
                Err(unreadable) => all(&|| {
                    let problem = format!("the handler's reply was not understood: {unreadable}");
                    Disposition::Failed(JobError::Internal { problem })
                }),
            }
        }
    }
}

fn disposition(in_flight: &InFlight, reports: &[JobReport], failures: Option<&[String]>) -> Disposition {
    let name = in_flight.name();
    let report = reports.iter().find(|settled| settled.message_id == name).cloned();
    // A reply with failures that cannot be read fails all of the batch, as it does with AWS.
    let failed = failures.is_none_or(|failures| failures.iter().any(|failure| is_of(in_flight, failure)));
    match report {
        Some(report) if report.outcome.goes_back() == failed => Disposition::Reported(report),
        None if !failed => Disposition::Taken,
        _ => Disposition::Failed(JobError::Internal { problem: "the function handed the message back".into() }),
    }
}

/// The ids in `batchItemFailures`; none when the list cannot be read, or names a message that is not in the batch.
fn failures(in_flight: &[InFlight], reply: &Value) -> Option<Vec<String>> {
    let failures = &reply["batchItemFailures"];
    if failures.is_null() {
        return Some(Vec::new());
    }
    let ids = failures.as_array()?.iter().map(|failure| {
        let id = failure["itemIdentifier"].as_str()?;
        in_flight.iter().any(|in_flight| is_of(in_flight, id)).then(|| id.to_owned())
    });
    ids.collect()
}

/// Whether a failure names the message. A function that knows nothing of our names uses the publisher's; where two messages have
/// the same, both come back.
fn is_of(in_flight: &InFlight, failure: &str) -> bool {
    failure == in_flight.name() || failure == in_flight.message.id
}
