//! A message that failed for good goes to the dead-letter queue of its queue's redrive policy at once, with the reason.
//!
//! SQS would move it by itself at the policy's `maxReceiveCount`. Until then it would come back, start the job again and, where
//! it crashes a handler, crash it again, after its caller has been notified that it failed; and it would arrive without a reason.

use std::collections::HashMap;

use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use serde::Deserialize;

use super::queue::{OutgoingMessage, Queue};
use super::queue_url::is_fifo;
use super::record::{ENDED, attributes_of};
use crate::host::source::{Message, SourceError};
use crate::protocol::deferral::SQS_ATTRIBUTE;

/// The attribute that says why.
pub(super) const REASON: &str = "atelier-reason";
/// SQS takes no more of them.
pub(super) const MAX_ATTRIBUTES: usize = 10;
const MAX_REASON_CHARS: usize = 500;
/// The word `String` of an attribute.
const TYPE_BYTES: usize = 6;
const REASON_BYTES: usize = REASON.len() + 4 * MAX_REASON_CHARS + TYPE_BYTES;

#[derive(Deserialize)]
pub(super) struct RedrivePolicy {
    #[serde(rename = "deadLetterTargetArn")]
    target: String,
    /// moto has it as a number, SQS as either.
    #[serde(rename = "maxReceiveCount", default)]
    most_receives: serde_json::Value,
}

impl RedrivePolicy {
    /// ARN of the dead-letter queue.
    pub(super) fn target(&self) -> &str {
        &self.target
    }

    /// After so many deliveries SQS moves a message by itself.
    pub(super) fn most_receives(&self) -> Option<u64> {
        self.most_receives.as_u64().or_else(|| self.most_receives.as_str()?.parse().ok())
    }
}

impl Queue {
    /// URL of the dead-letter queue, where the redrive policy names one. Asked each time: the policy may change while we run.
    pub(super) async fn dead_letter_queue(&self) -> Result<Option<String>, SourceError> {
        match self.redrive_policy().await? {
            None => Ok(None),
            Some(policy) => self.url_of(&policy.target).await.map(Some),
        }
    }

    pub(super) async fn redrive_policy(&self) -> Result<Option<RedrivePolicy>, SourceError> {
        let attributes = self.attributes(&[QueueAttributeName::RedrivePolicy]).await?;
        let Some(text) = attributes.get(&QueueAttributeName::RedrivePolicy).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        serde_json::from_str(text).map(Some).map_err(|error| SourceError::Refused {
            queue: self.url.clone(),
            action: "sqs:GetQueueAttributes",
            problem: format!("the redrive policy {text:?} names no dead-letter queue ({error})"),
        })
    }

    /// Puts a copy of the message where failed ones are kept; it is to be deleted here then. Interrupted in between, it is there
    /// twice, never lost.
    pub(super) async fn keep_dead(&self, message: &Message, reason: &str) -> Result<(), SourceError> {
        let Some(target) = self.dead_letter_queue().await? else {
            // Left here it would start the job again and again, and its caller has been notified.
            tracing::warn!(
                queue = self.url,
                message_id = message.id,
                reason,
                "a failed message is deleted: the queue has no redrive policy; set one to keep such messages"
            );
            return Ok(());
        };
        // Who may send there need not be allowed to ask how much it takes.
        let most_bytes = self.most_bytes_of(&target).await.unwrap_or_else(|_| self.most_bytes());
        if message.body.len() > most_bytes {
            tracing::error!(
                queue = target,
                message_id = message.id,
                reason,
                bytes = message.body.len(),
                most_bytes,
                "a failed message is deleted: it is larger than its dead-letter queue takes; raise that queue's MaximumMessageSize"
            );
            return Ok(());
        }
        self.send_to(&target, self.outgoing_message(&target, message, reason, most_bytes)?).await
    }

    /// `most_bytes`: what `target` takes, and no less than the body.
    fn outgoing_message<'a>(
        &self,
        target: &str,
        message: &'a Message,
        reason: &str,
        most_bytes: usize,
    ) -> Result<OutgoingMessage<'a>, SourceError> {
        let body = self.text(&message.body)?;
        let room = most_bytes - body.len();
        let mut attributes = lasting_attributes(message);
        // How the job ended stands in its record, or in the note of its failure, as well.
        if attributes.len() > MAX_ATTRIBUTES || bytes(&attributes) > room {
            attributes.remove(ENDED);
        }
        if bytes(&attributes) > room {
            tracing::warn!(queue = target, message_id = message.id, most_bytes, "a dead letter has no room for its attributes");
            attributes.clear();
        }
        if attributes.len() < MAX_ATTRIBUTES && bytes(&attributes) + REASON_BYTES <= room {
            let text = MessageAttributeValue::builder().data_type("String").string_value(presentable(reason)).build();
            attributes.extend(text.ok().map(|text| (REASON.to_owned(), text)));
        }
        let group = message.record["attributes"]["MessageGroupId"].as_str();
        let deduplication = is_fifo(target).then(|| message.id.clone());
        Ok(OutgoingMessage { body, attributes, trace: message.trace, group, deduplication, delay_s: None })
    }
}

/// The message's own attributes and how its job ended, without what is of one life: attempts and waiting, and why it died.
pub(super) fn lasting_attributes(message: &Message) -> HashMap<String, MessageAttributeValue> {
    let mut attributes = attributes_of(message);
    attributes.remove(SQS_ATTRIBUTE);
    attributes.remove(REASON);
    attributes
}

/// Attributes count into a message's size: their names, types and values.
fn bytes(attributes: &HashMap<String, MessageAttributeValue>) -> usize {
    let sizes = attributes.iter().map(|(name, value)| {
        let text = value.string_value().map_or(0, str::len);
        let binary = value.binary_value().map_or(0, |binary| binary.as_ref().len());
        name.len() + value.data_type().len() + text + binary
    });
    sizes.sum()
}

/// As SQS takes it for an attribute: not empty, no control characters, not long.
fn presentable(reason: &str) -> String {
    let text: String = reason
        .chars()
        .map(|c| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { ' ' } else { c })
        .take(MAX_REASON_CHARS)
        .collect();
    if text.trim().is_empty() { "not given".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_made_presentable() {
        assert_eq!(presentable("a\nb\u{0}c\u{ffff}"), "a b c ");
        assert_eq!(presentable(" \n"), "not given");
        assert_eq!(presentable(&"ä".repeat(900)).chars().count(), MAX_REASON_CHARS);
    }
}
