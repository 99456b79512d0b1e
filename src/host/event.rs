//! Messages in flight become one event of AWS's shape, and the reply to it says what became of each.

use serde_json::{Value, json};

use super::source::{Message, Shape};
use crate::job::trace::{TRACEPARENT, Trace};
use crate::protocol::context;

/// One event for messages of one source, in their order. The handler's spans stand below the trace next to each message, where there
/// is one; else below that in the message.
#[must_use]
pub fn batch(shape: &Shape, messages: &[(&Message, Option<Trace>)]) -> Value {
    let records: Vec<Value> = messages.iter().map(|(message, trace)| record(shape, message, *trace)).collect();
    match shape {
        Shape::Sqs => json!({ "Records": records }),
        Shape::RabbitMq { event_source_arn, queue } => json!({
            "eventSource": "aws:rmq",
            "eventSourceArn": event_source_arn,
            "rmqMessagesByQueue": { queue: records },
        }),
    }
}

fn record(shape: &Shape, message: &Message, trace: Option<Trace>) -> Value {
    let mut record = message.record.clone();
    match shape {
        Shape::Sqs => {
            if let Some(trace) = trace {
                record["attributes"]["AWSTraceHeader"] = trace.to_xray().into();
            }
        }
        Shape::RabbitMq { .. } => {
            if let Some(trace) = trace {
                record["basicProperties"]["headers"][TRACEPARENT] = json!({ "bytes": trace.to_traceparent().as_bytes() });
            }
            context::encode_message_id(&mut record, name(shape, message));
        }
    }
    record
}

/// What a message is called between the host and a handler. Of all that is in flight no other has that name.
#[must_use]
pub fn name<'a>(shape: &Shape, message: &'a Message) -> &'a str {
    match shape {
        // A partial batch failure names messages as SQS does, whatever function writes it.
        Shape::Sqs => &message.id,
        // AMQP leaves the id to the publisher, who may use one twice. The delivery is the broker's.
        Shape::RabbitMq { .. } => &message.receipt,
    }
}

/// A `POST /generate` as API Gateway (payload format 2.0) sends it.
#[must_use]
pub fn http_generate(body: &[u8], token: Option<&str>, trace: Option<Trace>) -> Value {
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/generate",
        "rawQueryString": "",
        "headers": { "content-type": "application/json", "host": "atelier-host" },
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "atelier-host",
            "domainName": "atelier-host",
            "domainPrefix": "atelier-host",
            "http": {
                "method": "POST", "path": "/generate", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "atelier-host",
            },
            "requestId": uuid::Uuid::now_v7().to_string(),
            "routeKey": "$default",
            "stage": "$default",
        },
        "body": String::from_utf8_lossy(body),
        "isBase64Encoded": false,
    });
    if let Some(token) = token {
        event["headers"]["x-internal-auth"] = token.into();
    }
    if let Some(trace) = trace {
        event["headers"][TRACEPARENT] = trace.to_traceparent().into();
    }
    event
}
