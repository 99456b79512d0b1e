//! RabbitMQ: a batch of messages by queue in; the reply is success or an error, which brings the whole batch back.
//!
//! Of a record only what a job needs is read, and each part may be null or absent: an event that cannot be read is redelivered for ever.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Delivery, EventError};
use crate::job::trace::{TRACEPARENT, Trace};
use crate::protocol::context;

#[derive(Debug)]
pub struct Batch {
    pub deliveries: Vec<Delivery>,
}

impl Batch {
    pub(super) fn parse(payload: &Value) -> Result<Self, EventError> {
        let by_queue = &payload["rmqMessagesByQueue"];
        let malformed = |problem: &str| EventError::Malformed { kind: "a RabbitMQ batch", problem: problem.to_owned() };
        if !by_queue.is_object() && !by_queue.is_null() {
            return Err(malformed("rmqMessagesByQueue must be an object of lists"));
        }
        let mut queues: Vec<_> = by_queue.as_object().into_iter().flatten().collect();
        queues.sort_by_key(|(queue, _)| *queue);
        let mut deliveries = Vec::new();
        for (queue, messages) in queues {
            if !messages.is_array() && !messages.is_null() {
                return Err(malformed("rmqMessagesByQueue must be an object of lists"));
            }
            let messages = messages.as_array().into_iter().flatten();
            deliveries.extend(messages.enumerate().map(|(index, message)| delivery(queue, index, message)));
        }
        Ok(Self { deliveries })
    }
}

fn delivery(queue: &str, index: usize, message: &Value) -> Delivery {
    let data = message["data"].as_str().unwrap_or_default();
    let properties = &message["basicProperties"];
    let headers = &properties["headers"];
    let id = context::decode_message_id(headers).or_else(|| properties["messageId"].as_str());
    let named = (properties["messageId"].as_str(), properties["timestamp"].as_str());
    let identity = Sha256::new().chain_update(format!("{named:?}\n")).chain_update(data);
    Delivery {
        source: "rabbitmq",
        identity: base16ct::lower::encode_string(&identity.finalize()),
        message_id: id.map_or_else(|| format!("{queue}#{index}"), str::to_owned),
        attempt: attempt(headers, message["redelivered"] == true),
        group: None,
        trace: trace(headers),
        // What is not base64 is passed on as it is: it is no job either, and is refused as one, alone.
        body: STANDARD.decode(data).unwrap_or_else(|_| data.as_bytes().to_vec()),
    }
}

/// Quorum queues count redeliveries in `x-delivery-count`; of a classic queue it is only known whether there was one.
fn attempt(headers: &Value, redelivered: bool) -> u32 {
    let counted = headers["x-delivery-count"].as_u64();
    counted.map_or(1 + u32::from(redelivered), |count| u32::try_from(count).unwrap_or(u32::MAX).saturating_add(1))
}

/// AWS writes a header's text as `{"bytes": [...]}`.
fn trace(headers: &Value) -> Option<Trace> {
    let bytes = headers[TRACEPARENT]["bytes"].as_array()?.iter().map(|byte| u8::try_from(byte.as_u64()?).ok());
    Trace::from_traceparent(std::str::from_utf8(&bytes.collect::<Option<Vec<u8>>>()?).ok()?)
}
