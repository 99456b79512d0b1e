//! SQS: a batch of records in, the records to bring back out (partial batch failures).

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsEvent, SqsMessage};
use serde_json::Value;

use super::{Delivery, EventError, Settlement};

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
        message_id,
        attempt,
        group: message.attributes.get("MessageGroupId").cloned(),
        body: message.body.unwrap_or_default().into_bytes(),
    })
}

/// The reply: it holds what the queue is to bring back and nothing else.
#[must_use]
pub fn reply(settled: &[(Delivery, Settlement)]) -> Value {
    let mut response = SqsBatchResponse::default();
    for (delivery, settlement) in settled {
        if *settlement == Settlement::Retry {
            let mut failure = BatchItemFailure::default();
            failure.item_identifier.clone_from(&delivery.message_id);
            response.batch_item_failures.push(failure);
        }
    }
    serde_json::json!(response)
}
