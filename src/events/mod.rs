//! Events in, replies out: SQS batches, RabbitMQ batches, HTTP requests and bare jobs become deliveries of job bodies.

pub mod auth;
pub mod http;
pub mod rabbitmq;
pub mod sqs;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::job::metadata::Metadata;
use crate::job::request::envelope;
use crate::job::trace::Trace;

/// One invocation's payload, distinguished by its shape.
#[derive(Debug)]
pub enum Event {
    Sqs(sqs::Batch),
    RabbitMq(rabbitmq::Batch),
    Http(http::Exchange),
    /// A bare job body, by anyone who may invoke the function.
    Direct(Vec<u8>),
}

/// One message of a queue: a job body and what the queue says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// `sqs`, `rabbitmq`, `http` or `invoke`.
    pub source: &'static str,
    /// The queue's own name for the message.
    pub message_id: String,
    /// The same in every delivery of the message; empty where it is delivered once. Where neither queue nor publisher name the message,
    /// equal ones are taken for one.
    pub identity: String,
    /// Starts at 1.
    pub attempt: u32,
    /// Messages of one group must be settled in order (SQS FIFO; a standard queue has none).
    pub group: Option<String>,
    pub trace: Option<Trace>,
    pub body: Vec<u8>,
}

impl Delivery {
    /// Of a body that nobody delivers again.
    #[must_use]
    pub fn once(source: &'static str, trace: Option<Trace>, body: Vec<u8>) -> Self {
        Self { source, message_id: String::new(), identity: String::new(), attempt: 1, group: None, trace, body }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EventError {
    #[error(
        "this event is none of those the function takes: an SQS batch (Records with eventSource aws:sqs), a RabbitMQ batch \
         (eventSource aws:rmq), an HTTP request (API Gateway, function URL, ALB) or a job body itself (job_id, prompt); its keys are: {keys}"
    )]
    Unknown { keys: String },
    #[error("the event looks like {kind} but cannot be read: {problem}")]
    Malformed { kind: &'static str, problem: String },
}

/// The one notification of an event of an SNS topic that invokes the function itself: what an SQS subscription gets as its body.
fn sns_record(payload: &Value, text: &str) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct Batch<'a> {
        #[serde(borrow, rename = "Records")]
        records: [Record<'a>; 1],
    }
    #[derive(Deserialize)]
    struct Record<'a> {
        #[serde(borrow, rename = "Sns")]
        sns: &'a RawValue,
    }
    if payload["Records"][0]["EventSource"] != "aws:sns" {
        return None;
    }
    let batch: Batch<'_> = serde_json::from_str(text).ok()?;
    let [record] = batch.records;
    Some(record.sns.get().as_bytes().to_vec())
}

impl Event {
    /// Distinguishes the kinds and reads the event. `text`: all of it, since parsing changes numbers that no `f64` or `u64` holds.
    ///
    /// # Errors
    /// [`EventError::Unknown`] for anything else, an event of a kind that is not its own shape included.
    pub fn parse(text: &RawValue) -> Result<Self, EventError> {
        let text = text.get();
        // A caller's metadata may be more than a `Value` holds.
        let (_, hollow) = Metadata::taken_out(text.as_bytes());
        let payload: &Value = &serde_json::from_slice(&hollow)
            .map_err(|error| EventError::Malformed { kind: "JSON", problem: error.to_string() })?;
        if payload["Records"][0]["eventSource"] == "aws:sqs" {
            return sqs::Batch::parse(payload).map(Self::Sqs);
        }
        if payload["eventSource"] == "aws:rmq" {
            return rabbitmq::Batch::parse(payload).map(Self::RabbitMq);
        }
        if let Some(exchange) = http::Exchange::parse(payload) {
            return Ok(Self::Http(exchange));
        }
        if let Some(notification) = sns_record(payload, text) {
            return Ok(Self::Direct(notification));
        }
        if envelope::is_like_a_job(payload) || envelope::invokes_functions(payload) {
            return Ok(Self::Direct(text.as_bytes().to_vec()));
        }
        let keys = match payload {
            Value::Object(map) if !map.is_empty() => map.keys().take(10).cloned().collect::<Vec<_>>().join(", "),
            _ => "none".to_owned(),
        };
        Err(EventError::Unknown { keys })
    }
}
