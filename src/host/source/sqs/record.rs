//! A received message as an element of `Records` in AWS's SQS event, and its attributes back out of one.
//!
//! The form is the event source mapping's own, see
//! <https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html#example-standard-queue-message-event>.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::clock::later;
use crate::host::ended::EndedJob;
use crate::host::source::Message;
use crate::job::trace::Trace;
use crate::protocol::deferral::{Kept, SQS_ATTRIBUTE};

/// The attribute of a message whose job has ended.
pub(super) const ENDED: &str = "atelier-ended";

/// What every record of a queue says of it.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) arn: String,
    pub(super) fifo: bool,
}

impl Origin {
    fn region(&self) -> &str {
        self.arn.split(':').nth(3).unwrap_or_default()
    }

    /// None when SQS left the receipt out, without which nothing can be done with a message.
    pub(super) fn message(&self, received: types::Message, at: Instant) -> Option<Message> {
        let receipt = received.receipt_handle.clone()?;
        let attributes: BTreeMap<String, String> =
            received.attributes.into_iter().flatten().map(|(name, value)| (name.as_str().to_owned(), value)).collect();
        let number = |name: &str| attributes.get(name).and_then(|text| text.parse::<u64>().ok());
        let receipts = number("ApproximateReceiveCount").map_or(1, |count| count.clamp(1, u32::MAX.into()) as u32);
        let moment = |name: &str| number(name).map(|ms| later(SystemTime::UNIX_EPOCH, Duration::from_millis(ms)));
        let first_received = moment("ApproximateFirstReceiveTimestamp").filter(|_| receipts == 1);
        let sent = moment("SentTimestamp").map(|sent| match first_received {
            // Just now, by a clock that may differ from ours.
            Some(received) => SystemTime::now() - received.duration_since(sent).unwrap_or_default(),
            None => sent,
        });
        let group = attributes.get("MessageGroupId").filter(|_| self.fifo).cloned();
        let trace = attributes.get("AWSTraceHeader").and_then(|header| Trace::from_xray(header));
        let id = received.message_id.unwrap_or_default();
        let body = received.body.unwrap_or_default();
        let own: BTreeMap<_, _> = received.message_attributes.into_iter().flatten().collect();
        let ended = own.get(ENDED).and_then(|value| EndedJob::decode(value.string_value()?.as_bytes()));
        let kept = own.get(SQS_ATTRIBUTE).and_then(|value| Kept::decode(value.string_value()?));
        let attempt = receipts.saturating_add(kept.as_ref().map_or(0, |kept| kept.attempts));
        let deferral = kept.as_ref().and_then(Kept::deferral);
        let own: Map<_, _> = own.into_iter().map(|(name, value)| (name, attribute(&value))).collect();
        let mut record = json!({
            "messageId": id,
            "receiptHandle": receipt,
            "body": body,
            "attributes": attributes,
            "messageAttributes": own,
            "md5OfBody": received.md5_of_body,
            "eventSource": "aws:sqs",
            "eventSourceARN": self.arn,
            "awsRegion": self.region(),
        });
        if let Some(md5) = received.md5_of_message_attributes {
            record["md5OfMessageAttributes"] = md5.into();
        }
        let identity = kept.map_or_else(|| id.clone(), |kept| kept.message_id);
        Some(Message {
            id,
            identity,
            receipt,
            attempt,
            deferral,
            group,
            body: body.into_bytes(),
            trace,
            sent,
            received: at,
            ended,
            record,
        })
    }
}

fn attribute(value: &types::MessageAttributeValue) -> Value {
    let mut attribute = json!({ "stringListValues": [], "binaryListValues": [], "dataType": value.data_type() });
    if let Some(text) = value.string_value() {
        attribute["stringValue"] = text.into();
    }
    if let Some(bytes) = value.binary_value() {
        attribute["binaryValue"] = BASE64_STANDARD.encode(bytes).into();
    }
    attribute
}

/// The message's own attributes, to be sent along with its body, and how its job ended.
pub(super) fn attributes_of(message: &Message) -> HashMap<String, types::MessageAttributeValue> {
    let own = message.record["messageAttributes"].as_object().into_iter().flatten().filter(|(name, _)| *name != ENDED);
    let ended = message.ended.as_ref().and_then(|ended| {
        let attribute = types::MessageAttributeValue::builder().data_type("String").string_value(ended.encode());
        Some((ENDED.to_owned(), attribute.build().ok()?))
    });
    own.filter_map(|(name, value)| {
        let binary = value["binaryValue"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        let attribute = types::MessageAttributeValue::builder()
            .data_type(value["dataType"].as_str()?)
            .set_string_value(value["stringValue"].as_str().map(str::to_owned))
            .set_binary_value(binary.map(Blob::new));
        Some((name.clone(), attribute.build().ok()?))
    })
    .chain(ended)
    .collect()
}

#[cfg(test)]
mod tests {
    use aws_lambda_events::sqs::SqsMessage;
    use aws_sdk_sqs::types::{MessageAttributeValue, MessageSystemAttributeName};

    use super::*;

    fn received() -> types::Message {
        let text = MessageAttributeValue::builder().data_type("String").string_value("gold").build().unwrap();
        let bytes = MessageAttributeValue::builder().data_type("Binary").binary_value(Blob::new([0, 255])).build().unwrap();
        types::Message::builder()
            .message_id("m-1")
            .receipt_handle("r-1")
            .body("{}")
            .md5_of_body("99914b932bd37a50b983c5e7c90ae93b")
            .md5_of_message_attributes("d41d")
            .attributes(MessageSystemAttributeName::ApproximateReceiveCount, "3")
            .attributes(MessageSystemAttributeName::SentTimestamp, "1795300000000")
            .attributes(MessageSystemAttributeName::MessageGroupId, "user-7")
            .attributes(
                MessageSystemAttributeName::AwsTraceHeader,
                "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1",
            )
            .message_attributes("tier", text)
            .message_attributes("raw", bytes)
            .build()
    }

    fn origin(fifo: bool) -> Origin {
        Origin { arn: "arn:aws:sqs:eu-west-3:123456789012:jobs".into(), fifo }
    }

    #[test]
    fn a_record_has_the_keys_of_aws_own_event() {
        let sample: Value = serde_json::from_str(include_str!("../../../../events/sqs-plain.json")).unwrap();
        let message = origin(true).message(received(), Instant::now()).unwrap();
        let keys = |record: &Value| record.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut expected = keys(&sample["Records"][0]);
        expected.push("md5OfMessageAttributes".into());
        assert_eq!(keys(&message.record), expected);
        assert_eq!(message.record["awsRegion"], "eu-west-3");
        // AWS's own crate reads what we write.
        let read: SqsMessage = serde_json::from_value(message.record).unwrap();
        assert_eq!(read.attributes["ApproximateReceiveCount"], "3");
        assert_eq!(read.message_attributes["tier"].string_value.as_deref(), Some("gold"));
        assert_eq!(read.message_attributes["raw"].binary_value.as_ref().unwrap().0, [0, 255]);
    }

    #[test]
    fn what_the_host_needs_is_read_out() {
        let message = origin(true).message(received(), Instant::now()).unwrap();
        assert_eq!((message.id.as_str(), message.receipt.as_str(), message.attempt), ("m-1", "r-1", 3));
        assert_eq!(message.group.as_deref(), Some("user-7"));
        let trace = message.trace.map(Trace::to_traceparent);
        assert_eq!(trace.as_deref(), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert_eq!(message.sent, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_300_000)));
        let fair = origin(false).message(received(), Instant::now()).unwrap();
        assert_eq!(fair.group, None, "a standard queue's group asks for fairness, not for order");
    }

    #[test]
    fn attributes_survive_the_way_through_a_record() {
        let message = origin(false).message(received(), Instant::now()).unwrap();
        assert_eq!(Some(attributes_of(&message)), received().message_attributes);
        let ended = Some(EndedJob::complete(2));
        let carried = attributes_of(&Message { ended: ended.clone(), ..message });
        let mut again = received();
        again.message_attributes = Some(carried);
        let again = origin(false).message(again, Instant::now()).unwrap();
        assert_eq!(again.ended, ended);
        assert_eq!(Some(attributes_of(&Message { ended: None, ..again })), received().message_attributes);
    }
}
