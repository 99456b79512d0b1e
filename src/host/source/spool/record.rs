//! A job of the spool as it is handed out.

use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::name::Name;
use crate::clock::later;
use crate::host::source::Message;

const ARN: &str = "arn:aws:sqs:local:000000000000:spool";

/// A job of the spool as an SQS record: the handler needs to know no third kind of queue.
pub(super) fn message(name: &Name, body: Vec<u8>) -> Message {
    let sent_ms = name.sent_ms.to_string();
    let mut record = json!({
        "messageId": name.unique,
        "receiptHandle": name.to_string(),
        "body": String::from_utf8_lossy(&body),
        "attributes": {
            "ApproximateReceiveCount": name.attempt.to_string(),
            "SentTimestamp": sent_ms,
            "SenderId": "atelier-host",
            "ApproximateFirstReceiveTimestamp": sent_ms,
        },
        "messageAttributes": {},
        "md5OfBody": "",
        "eventSource": "aws:sqs",
        "eventSourceARN": ARN,
        "awsRegion": "local",
    });
    if let Some(trace) = name.trace {
        record["attributes"]["AWSTraceHeader"] = trace.to_xray().into();
    }
    Message {
        id: name.unique.clone(),
        identity: name.unique.clone(),
        receipt: name.to_string(),
        attempt: name.attempt,
        deferral: name.deferral,
        group: None,
        body,
        trace: name.trace,
        sent: Some(later(SystemTime::UNIX_EPOCH, Duration::from_millis(name.sent_ms))),
        received: Instant::now(),
        ended: None,
        record,
    }
}
