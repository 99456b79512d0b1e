//! RabbitMQ: a batch of messages by queue in; the reply is success or an error, which brings the whole batch back.

use aws_lambda_events::rabbitmq::{RabbitMqEvent, RabbitMqMessage};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Delivery, EventError};
use crate::job::trace::{TRACEPARENT, Trace};
use crate::protocol::context;

#[derive(Debug)]
pub struct Batch {
    pub deliveries: Vec<Delivery>,
}

impl Batch {
    pub(super) fn parse(payload: Value) -> Result<Self, EventError> {
        let malformed = |problem| EventError::Malformed { kind: "a RabbitMQ batch", problem };
        let event: RabbitMqEvent = serde_json::from_value(payload).map_err(|error| malformed(error.to_string()))?;
        let mut queues: Vec<_> = event.messages_by_queue.into_iter().collect();
        queues.sort_by(|(left, _), (right, _)| left.cmp(right));
        let mut deliveries = Vec::new();
        for (queue, messages) in queues {
            for (index, message) in messages.into_iter().enumerate() {
                deliveries.push(delivery(&queue, index, message));
            }
        }
        Ok(Self { deliveries })
    }
}

fn delivery(queue: &str, index: usize, message: RabbitMqMessage) -> Delivery {
    let data = message.data.unwrap_or_default();
    // What is not base64 is passed on as it is: it is no job either, and is refused as one, alone.
    let body = STANDARD.decode(&data).unwrap_or_else(|_| data.into_bytes());
    let named = context::decode_message_id(&message.basic_properties.headers).map(str::to_owned);
    Delivery {
        source: "rabbitmq",
        message_id: named.or(message.basic_properties.message_id).unwrap_or_else(|| format!("{queue}#{index}")),
        attempt: attempt(&message.basic_properties.headers, message.redelivered),
        group: None,
        trace: trace(&message.basic_properties.headers),
        body,
    }
}

/// Quorum queues count redeliveries in `x-delivery-count`; of a classic queue it is only known whether there was one.
fn attempt(headers: &std::collections::HashMap<String, Value>, redelivered: bool) -> u32 {
    let counted = headers.get("x-delivery-count").and_then(Value::as_u64);
    counted.map_or(1 + u32::from(redelivered), |count| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1))
}

/// AWS writes a header's text as `{"bytes": [...]}`.
fn trace(headers: &std::collections::HashMap<String, Value>) -> Option<Trace> {
    let bytes = headers.get(TRACEPARENT)?["bytes"].as_array()?.iter().map(|byte| u8::try_from(byte.as_u64()?).ok());
    Trace::from_traceparent(std::str::from_utf8(&bytes.collect::<Option<Vec<u8>>>()?).ok()?)
}
