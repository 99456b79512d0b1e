//! SQS: a batch of records in; the reply names those to bring back ([`batch_reply`]).

use serde_json::{Value, json};

use super::{Delivery, EventError};
use crate::job::trace::Trace;
use crate::protocol::deferral::{Kept, SQS_ATTRIBUTE};
use crate::protocol::reply::JobReport;

#[derive(Debug)]
pub struct Batch {
    pub deliveries: Vec<Delivery>,
}

impl Batch {
    pub(super) fn parse(payload: &Value) -> Result<Self, EventError> {
        let records = payload["Records"].as_array().into_iter().flatten();
        records.map(delivery).collect::<Result<_, _>>().map(|deliveries| Self { deliveries })
    }
}

/// Of a record only what a job needs is read; all but its id may be null or absent.
fn delivery(record: &Value) -> Result<Delivery, EventError> {
    let message_id = record["messageId"].as_str().ok_or_else(|| EventError::Malformed {
        kind: "an SQS batch",
        problem: "a record has no messageId, so it could not be handed back alone".into(),
    })?;
    let attribute = |name: &str| record["attributes"][name].as_str();
    // On a standard queue the group is a tenant, among whom SQS is fair; it asks for no order.
    let fifo =
        record["eventSourceARN"].as_str().is_some_and(|queue| queue.rsplit_once('.').is_some_and(|(_, kind)| kind == "fifo"));
    // A host may have sent it again, after attempts that SQS counts no more.
    let kept = record["messageAttributes"][SQS_ATTRIBUTE]["stringValue"].as_str().and_then(Kept::decode);
    let receipts: u32 = attribute("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1);
    Ok(Delivery {
        source: "sqs",
        message_id: message_id.to_owned(),
        identity: kept.as_ref().map_or(message_id, |kept| &kept.message_id).to_owned(),
        attempt: receipts.saturating_add(kept.map_or(0, |kept| kept.attempts)),
        group: attribute("MessageGroupId").filter(|_| fifo).map(str::to_owned),
        trace: attribute("AWSTraceHeader").and_then(Trace::from_xray),
        body: record["body"].as_str().unwrap_or_default().as_bytes().to_vec(),
    })
}

/// A partial batch failure: it holds what the queue is to bring back and nothing else.
#[must_use]
pub fn batch_reply(jobs: &[JobReport]) -> Value {
    let back = jobs.iter().filter(|job| job.outcome.goes_back());
    let failures: Vec<Value> = back.map(|job| json!({ "itemIdentifier": job.message_id })).collect();
    json!({ "batchItemFailures": failures })
}
