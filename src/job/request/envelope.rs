//! What a sender may have put around a job: SNS and `EventBridge` envelopes are opened, others are refused by their name.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::weight;
use crate::job::metadata::Metadata;
use crate::job::outcome::JobError;
use crate::shown;

/// `EventBridge` into SNS into SQS makes two envelopes; a deeper nest is no one's configuration.
const MAX_ENVELOPES: usize = 3;

/// The text of the job in a message: the body itself, or what lies in its envelopes.
///
/// # Errors
/// [`JobError::Invalid`] of the field `body`: it is no JSON object, or an envelope without a job in it.
pub(super) fn open(body: &[u8]) -> Result<Cow<'_, [u8]>, JobError> {
    weight::check(body).map_err(|problem| refused(format!("must be a JSON object; {problem}")))?;
    // Metadata are the caller's text, which nothing here has to understand.
    let mut value = parse(body).map_err(|error| match encoded(body) {
        Some(inner) => refused(format!("is base64 of {}; send the job as JSON text", kind(&inner))),
        None => not_json(&error),
    })?;
    let mut text = Cow::Borrowed(body);
    let mut names: Vec<&str> = Vec::new();
    while let Some(envelope) = Envelope::of(&value) {
        names.push(envelope.name());
        let inner = if names.len() <= MAX_ENVELOPES { envelope.inner(&value, &text) } else { None };
        let inner = inner.and_then(|inner| Some((parse(&inner).ok()?, inner)));
        let Some((inner, inner_text)) = inner else { return Err(refused(envelope.advice(&names.join(" around ")))) };
        if Envelope::of(&inner).is_none() && !is_like_a_job(&inner) {
            return Err(refused(envelope.advice(&names.join(" around "))));
        }
        value = inner;
        text = Cow::Owned(inner_text);
    }
    if value.is_object() { Ok(text) } else { Err(refused(format!("must be a JSON object, got {}", shown::json(&value)))) }
}

/// Whether someone meant this as a job, however wrong the rest of it is.
#[must_use]
pub fn is_like_a_job(value: &Value) -> bool {
    value.is_object() && value.get("job_id").is_some() && ["prompt", "task"].iter().any(|key| value.get(key).is_some())
}

/// Whether `EventBridge` or S3 invokes functions with this: taken as a body, it is opened or refused by its name like one in a queue.
#[must_use]
pub fn invokes_functions(value: &Value) -> bool {
    matches!(Envelope::of(value), Some(Envelope::EventBridge | Envelope::S3Notification))
}

/// What is not a job, but known to hold one or to be sent in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Envelope {
    Sns,
    SnsConfirmation,
    EventBridge,
    CloudEvent,
    S3Notification,
    S3Test,
    ExtendedClient,
    Celery,
    LambdaDestination,
    SqsRecords,
}

impl Envelope {
    fn of(value: &Value) -> Option<Self> {
        let has = |keys: &[&str]| keys.iter().all(|key| value.get(key).is_some());
        if let Value::Array(items) = value {
            let class = items.first().and_then(Value::as_str).unwrap_or_default();
            // Celery's protocol 2: arguments, named arguments, and what follows the task.
            let celery = items.len() == 3 && items[0].is_array() && items[1].is_object() && items[2].is_object();
            let pointer = class.ends_with("S3Pointer");
            return pointer.then_some(Self::ExtendedClient).or(celery.then_some(Self::Celery));
        }
        if value.get("job_id").is_some() {
            return None;
        }
        let first = &value["Records"][0];
        match value["Type"].as_str() {
            Some("Notification") if has(&["Message", "TopicArn"]) => return Some(Self::Sns),
            Some("SubscriptionConfirmation" | "UnsubscribeConfirmation") => return Some(Self::SnsConfirmation),
            _ => {}
        }
        let found = [
            (has(&["detail-type", "detail", "source"]), Self::EventBridge),
            (has(&["specversion", "type", "source"]), Self::CloudEvent),
            (first["eventSource"] == "aws:s3", Self::S3Notification),
            (value["Event"] == "s3:TestEvent", Self::S3Test),
            (has(&["s3BucketName", "s3Key"]), Self::ExtendedClient),
            (has(&["args", "kwargs"]) || has(&["body", "content-encoding", "properties"]), Self::Celery),
            (has(&["requestContext", "requestPayload"]), Self::LambdaDestination),
            (first["eventSource"] == "aws:sqs" || has(&["MessageId", "ReceiptHandle", "Body"]), Self::SqsRecords),
        ];
        found.into_iter().find(|(is, _)| *is).map(|(_, envelope)| envelope)
    }

    /// With its article.
    fn name(self) -> &'static str {
        match self {
            Self::Sns => "an SNS notification",
            Self::SnsConfirmation => "an SNS confirmation of a subscription",
            Self::EventBridge => "an EventBridge event",
            Self::CloudEvent => "a CloudEvents event",
            Self::S3Notification => "an S3 event notification",
            Self::S3Test => "the s3:TestEvent of an S3 notification",
            Self::ExtendedClient => "a pointer to S3 of the SQS extended client",
            Self::Celery => "a Celery task message",
            Self::LambdaDestination => "the record of a Lambda destination",
            Self::SqsRecords => "an SQS message with its metadata",
        }
    }

    /// The text of what lies in an envelope that may hold a job. `text`: of the envelope, of which parsing may change numbers.
    fn inner(self, value: &Value, text: &[u8]) -> Option<Vec<u8>> {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(borrow)]
            detail: &'a RawValue,
        }
        match self {
            Self::Sns => Some(value["Message"].as_str()?.as_bytes().to_vec()),
            Self::EventBridge => {
                let event: Event<'_> = serde_json::from_slice(text).ok()?;
                Some(event.detail.get().as_bytes().to_vec())
            }
            _ => None,
        }
    }

    /// What is wrong with the body, and what to do. `names`: this envelope and those around it, the outermost first.
    fn advice(self, names: &str) -> String {
        match self {
            Self::Sns => format!(
                "is {names}, and its Message is no job; publish the job as the message and turn on raw message delivery in \
                 the subscription"
            ),
            Self::EventBridge => format!(
                "is {names}, and its detail is no job; put the job into `detail`, or have the rule send it alone (input path \
                 `$.detail`, which is its raw message delivery)"
            ),
            Self::SnsConfirmation => format!("is {names}, not a job; SQS subscriptions need no confirmation"),
            Self::CloudEvent => format!("is {names}, not a job; send what is in its `data` alone"),
            Self::S3Notification | Self::S3Test => {
                format!("is {names}, not a job; remove this queue from the bucket's event notifications")
            }
            Self::ExtendedClient => {
                format!(
                    "is {names}, not a job; send the job itself, with large inputs as addresses (a message has 1 MiB at most)"
                )
            }
            Self::Celery => format!(
                "is {names}, not a job; publish the job as the raw message body (JSON text) with a queue client, not as a task"
            ),
            Self::LambdaDestination | Self::SqsRecords => format!("is {names}, not a job; send the job's own body alone"),
        }
    }
}

/// What it says but for its metadata.
fn parse(body: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(&Metadata::taken_out(body).1)
}

/// The JSON whose base64 the body is.
fn encoded(body: &[u8]) -> Option<Value> {
    parse(&STANDARD.decode(body.trim_ascii()).ok()?).ok()
}

fn kind(value: &Value) -> &'static str {
    Envelope::of(value).map_or("JSON", Envelope::name)
}

pub(super) fn not_json(error: &serde_json::Error) -> JobError {
    refused(format!("must be a JSON object ({error})"))
}

fn refused(problem: String) -> JobError {
    JobError::Invalid { field: "body".into(), problem }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job() -> Value {
        json!({ "job_id": "job-1", "prompt": "a mug" })
    }

    fn sns(message: &Value) -> Value {
        json!({
            "Type": "Notification", "MessageId": "22b80b92", "TopicArn": "arn:aws:sns:us-east-1:123456789012:jobs",
            "Message": message.as_str().map_or_else(|| message.to_string(), str::to_owned),
            "Timestamp": "2026-11-21T22:00:00.000Z", "SignatureVersion": "1", "Signature": "EXAMPLE",
            "SigningCertURL": "https://sns.us-east-1.amazonaws.com/SimpleNotificationService.pem",
            "UnsubscribeURL": "https://sns.us-east-1.amazonaws.com/?Action=Unsubscribe",
        })
    }

    fn event_bridge(detail: &Value) -> Value {
        json!({
            "version": "0", "id": "17793124", "detail-type": "job", "source": "backend", "account": "123456789012",
            "time": "2026-11-21T22:00:00Z", "region": "us-east-1", "resources": [], "detail": detail,
        })
    }

    fn s3() -> Value {
        json!({ "Records": [{ "eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {} }] })
    }

    #[test]
    fn envelopes_with_a_job_are_opened() {
        let plain = job();
        let odd = json!({ "job_id": "job-1", "prompt": "a mug", "detail-type": 1, "detail": 2, "source": 3 });
        for (body, inner) in [
            (plain.clone(), &plain),
            (sns(&plain), &plain),
            (event_bridge(&plain), &plain),
            (sns(&event_bridge(&plain)), &plain),
            (event_bridge(&odd), &odd),
            (odd.clone(), &odd),
        ] {
            assert_eq!(parse(&open(body.to_string().as_bytes()).unwrap()).unwrap(), *inner, "{body}");
        }
    }

    #[test]
    fn others_are_refused_by_name_with_what_to_do() {
        let task = json!([[1], { "prompt": "a mug" }, { "callbacks": null, "errbacks": null, "chain": null, "chord": null }]);
        let kombu = json!({
            "body": "W10=", "content-encoding": "utf-8", "content-type": "application/json", "headers": {}, "properties": {},
        });
        let pointer = |class: &str| json!([class, { "s3BucketName": "large", "s3Key": "1f2e" }]);
        let text = |value: &Value| value.to_string().into_bytes();
        let base64 = |value: &Value| STANDARD.encode(value.to_string()).into_bytes();
        let test = json!({ "Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b", "RequestId": "r", "HostId": "h" });
        let deep = sns(&sns(&sns(&sns(&job()))));
        for (body, words) in [
            (text(&sns(&json!("hello"))), ["an SNS notification", "raw message delivery"]),
            (text(&sns(&json!({ "hello": 1 }))), ["an SNS notification", "raw message delivery"]),
            (text(&sns(&s3())), ["an SNS notification around an S3 event notification", "event notifications"]),
            (text(&deep), ["an SNS notification around an SNS notification", "raw message delivery"]),
            (text(&json!({ "Type": "SubscriptionConfirmation", "Token": "t" })), ["SNS confirmation", "no confirmation"]),
            (text(&event_bridge(&json!({ "hello": 1 }))), ["an EventBridge event", "raw message delivery"]),
            (text(&s3()), ["an S3 event notification", "not a job"]),
            (text(&test), ["s3:TestEvent", "not a job"]),
            (text(&pointer("software.amazon.payloadoffloading.PayloadS3Pointer")), ["SQS extended client", "1 MiB"]),
            (text(&pointer("com.amazon.sqs.javamessaging.MessageS3Pointer")), ["SQS extended client", "1 MiB"]),
            (text(&task), ["a Celery task message", "raw message"]),
            (
                text(&json!({ "task": "generate", "id": "1", "args": [], "kwargs": {} })),
                ["a Celery task message", "not as a task"],
            ),
            (base64(&kombu), ["base64 of a Celery task message", "JSON text"]),
            (base64(&job()), ["base64 of JSON", "JSON text"]),
            (text(&json!({ "specversion": "1.0", "type": "t", "source": "s", "data": job() })), ["a CloudEvents", "`data`"]),
            (text(&json!([1])), ["must be a JSON object", "[1]"]),
            (b"*** not JSON ***".to_vec(), ["must be a JSON object", "line 1"]),
        ] {
            let error = open(&body).expect_err("must be refused").to_string();
            for word in words {
                assert!(error.starts_with("body: ") && error.contains(word), "{word}: {error}");
            }
        }
    }
}
