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

const REASON: &str = "atelier-reason";
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

    /// Sends the message to the dead-letter queue, then deletes it here: interrupted in between, it is there twice, never lost.
    pub(super) async fn dead_letter(&self, message: &Message, reason: &str) -> Result<(), SourceError> {
        if let Some(target) = self.dead_letter_queue().await? {
            self.send_to(&target, self.outgoing_message(&target, message, reason)?).await?;
        } else {
            // Left here it would start the job again and again, and its caller has been notified.
            tracing::warn!(
                queue = self.url,
                message_id = message.id,
                reason,
                "a failed message is deleted: the queue has no redrive policy; set one to keep such messages"
            );
        }
        self.delete(message).await
    }

    fn outgoing_message<'a>(
        &self,
        target: &str,
        message: &'a Message,
        reason: &str,
    ) -> Result<OutgoingMessage<'a>, SourceError> {
        let body = self.checked_body(&message.body)?;
        let mut attributes = attributes_of(message);
        attributes.remove(SQS_ATTRIBUTE);
        // How the job ended stands in its record, or in the note of its failure, as well.
        if attributes.len() > MAX_ATTRIBUTES || !self.has_room(message, ended_bytes(&attributes)) {
            attributes.remove(ENDED);
        }
        if attributes.len() < MAX_ATTRIBUTES && self.has_room(message, ended_bytes(&attributes) + REASON_BYTES) {
            let text = MessageAttributeValue::builder().data_type("String").string_value(presentable(reason)).build();
            attributes.extend(text.ok().map(|text| (REASON.to_owned(), text)));
        }
        let group = message.record["attributes"]["MessageGroupId"].as_str();
        let deduplication = is_fifo(target).then(|| message.id.clone());
        Ok(OutgoingMessage { body, attributes, trace: message.trace, group, deduplication, delay_s: None })
    }

    /// Attributes count into a message's size; the record holds all of them, and a little more.
    fn has_room(&self, message: &Message, more: usize) -> bool {
        let attributes = message.record["messageAttributes"].to_string().len();
        message.body.len() + attributes + more <= self.most_bytes()
    }
}

fn ended_bytes(attributes: &HashMap<String, MessageAttributeValue>) -> usize {
    let text = attributes.get(ENDED).and_then(|value| value.string_value());
    text.map_or(0, |text| ENDED.len() + TYPE_BYTES + text.len())
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
