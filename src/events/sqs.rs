//! SQS: a batch of records in; the reply names those to bring back ([`batch_reply`]).

use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use serde_json::{Value, json};

use super::{Delivery, EventError};
use crate::job::trace::Trace;
use crate::protocol::reply::Settled;

#[derive(Debug)]
pub struct Batch {
    pub deliveries: Vec<Delivery>,
}

impl Batch {
    pub(super) fn parse(payload: Value) -> Result<Self, EventError> {
        let event: SqsEvent = serde_json::from_value(payload)
            .map_err(|error| EventError::Malformed { kind: "an SQS batch", problem: error.to_string() })?;
        event.records.into_iter().map(delivery).collect::<Result<_, _>>().map(|deliveries| Self { deliveries })
    }
}

fn delivery(message: SqsMessage) -> Result<Delivery, EventError> {
    let message_id = message.message_id.ok_or_else(|| EventError::Malformed {
        kind: "an SQS batch",
        problem: "a record has no messageId, so it could not be handed back alone".into(),
    })?;
    let attempt = message.attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1);
    Ok(Delivery {
        source: "sqs",
        message_id,
        attempt,
        group: message.attributes.get("MessageGroupId").cloned(),
        trace: message.attributes.get("AWSTraceHeader").and_then(|header| Trace::from_xray(header)),
        body: message.body.unwrap_or_default().into_bytes(),
    })
}

/// A partial batch failure: it holds what the queue is to bring back and nothing else.
#[must_use]
pub fn batch_reply(jobs: &[Settled]) -> Value {
    let back = jobs.iter().filter(|job| job.outcome.goes_back());
    let failures: Vec<Value> = back.map(|job| json!({ "itemIdentifier": job.message_id })).collect();
    json!({ "batchItemFailures": failures })
}
