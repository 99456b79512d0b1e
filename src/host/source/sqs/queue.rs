//! One queue and the requests that its server is asked, each with the permission that it needs.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::Builder;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeName, MessageSystemAttributeNameForSends as Name, MessageSystemAttributeValue,
    QueueAttributeName,
};

use super::Settings;
use super::answers::confirmed;
use super::error::source_error;
use super::lease::{delay_s, extension_s};
use super::record::Origin;
use crate::host::source::{Message, SourceError};
use crate::job::trace::Trace;

/// What SQS takes at most, body and attributes together; a queue may take less.
const MAX_BYTES: usize = 1 << 20;

pub(super) struct Queue {
    client: Client,
    pub(super) url: String,
    origin: Origin,
    wait_seconds: u32,
    visibility_seconds: u32,
    poll_timeout: TimeoutConfig,
    most_bytes: usize,
}

fn most_bytes(found: &HashMap<QueueAttributeName, String>) -> usize {
    found.get(&QueueAttributeName::MaximumMessageSize).and_then(|bytes| bytes.parse().ok()).unwrap_or(MAX_BYTES)
}

/// What SQS hands on as the attribute `AWSTraceHeader`.
fn trace_header(trace: Trace) -> Option<HashMap<Name, MessageSystemAttributeValue>> {
    let value = MessageSystemAttributeValue::builder().data_type("String").string_value(trace.to_xray()).build().ok()?;
    Some(HashMap::from([(Name::AwsTraceHeader, value)]))
}

/// A message on its way into a queue.
pub(super) struct OutgoingMessage<'a> {
    pub(super) body: &'a str,
    pub(super) attributes: HashMap<String, MessageAttributeValue>,
    pub(super) trace: Option<Trace>,
    pub(super) group: Option<&'a str>,
    /// FIFO queues drop a second message with the same one within five minutes.
    pub(super) deduplication: Option<String>,
    /// Seconds until it can be received, 0 to 900; FIFO queues refuse it.
    pub(super) delay_s: Option<u32>,
}

impl Queue {
    /// Asks the queue for its name and limits.
    pub(super) async fn open(client: Client, settings: &Settings, url: String, fifo: bool) -> Result<Self, SourceError> {
        let poll = Duration::from_secs(settings.wait_seconds.into()) + Duration::from_millis(settings.attempt_timeout_ms);
        let mut queue = Self {
            client,
            url,
            origin: Origin { arn: String::new(), fifo },
            wait_seconds: settings.wait_seconds,
            visibility_seconds: settings.visibility_seconds,
            poll_timeout: TimeoutConfig::builder().operation_attempt_timeout(poll).operation_timeout(poll).build(),
            most_bytes: MAX_BYTES,
        };
        let found = queue.attributes(&[QueueAttributeName::QueueArn, QueueAttributeName::MaximumMessageSize]).await?;
        queue.origin.arn = found.get(&QueueAttributeName::QueueArn).cloned().unwrap_or_default();
        queue.most_bytes = most_bytes(&found);
        Ok(queue)
    }

    pub(super) fn fifo(&self) -> bool {
        self.origin.fifo
    }

    pub(super) fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    /// One long poll.
    ///
    /// `request`: a name for it; a FIFO queue answers a repetition of the same request with the same messages.
    pub(super) async fn poll(&self, most: usize, request: String) -> Result<Vec<Message>, SourceError> {
        // SQS locks a group while a message of it is in flight, but hands out several of one group in one answer: two handlers
        // would have them at once, and the second could be done before the first is put back.
        let most = if self.fifo() { 1 } else { most.clamp(1, 10) };
        let received = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(most as i32)
            .wait_time_seconds(self.wait_seconds as i32)
            .visibility_timeout(self.visibility_seconds as i32)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            .set_receive_request_attempt_id(self.fifo().then_some(request))
            .customize()
            .config_override(Builder::new().timeout_config(self.poll_timeout.clone()))
            .send()
            .await
            .map_err(|error| source_error(&self.url, "sqs:ReceiveMessage", &error))?;
        let now = Instant::now();
        Ok(received.messages.into_iter().flatten().filter_map(|message| self.origin.message(message, now)).collect())
    }

    pub(super) async fn extend(&self, message: &Message) -> Result<(), SourceError> {
        let in_flight = message.received.elapsed();
        let Some(seconds) = extension_s(in_flight, self.visibility_seconds) else {
            return Err(SourceError::Lost {
                queue: self.url.clone(),
                action: "sqs:ChangeMessageVisibility",
                problem: format!("it was received {} s ago, and SQS leaves it here for 12 hours at most", in_flight.as_secs()),
            });
        };
        self.change_visibility(message, seconds).await
    }

    pub(super) async fn hide_for(&self, message: &Message, delay: Duration) -> Result<(), SourceError> {
        self.change_visibility(message, delay_s(message.received.elapsed(), delay)).await
    }

    async fn change_visibility(&self, message: &Message, seconds: u32) -> Result<(), SourceError> {
        let change = self.client.change_message_visibility().queue_url(&self.url).receipt_handle(&message.receipt);
        let changed = change.visibility_timeout(seconds as i32).send().await;
        changed.map(drop).map_err(|error| source_error(&self.url, "sqs:ChangeMessageVisibility", &error))
    }

    pub(super) async fn delete(&self, message: &Message) -> Result<(), SourceError> {
        let delete = self.client.delete_message().queue_url(&self.url).receipt_handle(&message.receipt);
        delete.send().await.map(drop).map_err(|error| source_error(&self.url, "sqs:DeleteMessage", &error))
    }

    /// The body as SQS takes it: text, and not too long.
    pub(super) fn checked_body<'a>(&self, body: &'a [u8]) -> Result<&'a str, SourceError> {
        if body.len() > self.most_bytes {
            return Err(SourceError::TooLarge { bytes: body.len(), most_bytes: self.most_bytes });
        }
        self.text(body)
    }

    pub(super) fn text<'a>(&self, body: &'a [u8]) -> Result<&'a str, SourceError> {
        std::str::from_utf8(body).map_err(|error| SourceError::Refused {
            queue: self.url.clone(),
            action: "sqs:SendMessage",
            problem: format!("the message is not text in UTF-8 ({error})"),
        })
    }

    /// `queue`: the URL of this queue or of another one on the same server. Returns when SQS has confirmed this very message.
    pub(super) async fn send_to(&self, queue: &str, outgoing_message: OutgoingMessage<'_>) -> Result<(), SourceError> {
        let send = self.client.send_message().queue_url(queue).message_body(outgoing_message.body);
        let attributes = Some(outgoing_message.attributes).filter(|attributes| !attributes.is_empty());
        let send = send
            .set_message_attributes(attributes)
            .set_message_system_attributes(outgoing_message.trace.and_then(trace_header))
            .set_message_group_id(outgoing_message.group.map(str::to_owned))
            .set_message_deduplication_id(outgoing_message.deduplication)
            .set_delay_seconds(outgoing_message.delay_s.map(|seconds| seconds as i32));
        let sent = send.send().await.map_err(|error| source_error(queue, "sqs:SendMessage", &error))?;
        confirmed(outgoing_message.body, &sent).map_err(|problem| SourceError::Unavailable {
            queue: queue.to_owned(),
            action: "sqs:SendMessage",
            problem,
        })
    }

    pub(super) async fn attributes(
        &self,
        names: &[QueueAttributeName],
    ) -> Result<HashMap<QueueAttributeName, String>, SourceError> {
        self.attributes_of(&self.url, names).await
    }

    async fn attributes_of(
        &self,
        queue: &str,
        names: &[QueueAttributeName],
    ) -> Result<HashMap<QueueAttributeName, String>, SourceError> {
        let get = self.client.get_queue_attributes().queue_url(queue).set_attribute_names(Some(names.to_vec()));
        match get.send().await {
            Ok(found) => Ok(found.attributes.unwrap_or_default()),
            Err(error) => Err(source_error(queue, "sqs:GetQueueAttributes", &error)),
        }
    }

    /// What another queue on the same server takes at most, body and attributes together.
    pub(super) async fn most_bytes_of(&self, queue: &str) -> Result<usize, SourceError> {
        Ok(most_bytes(&self.attributes_of(queue, &[QueueAttributeName::MaximumMessageSize]).await?))
    }

    /// URL of the queue with this ARN.
    pub(super) async fn url_of(&self, arn: &str) -> Result<String, SourceError> {
        let mut from_the_end = arn.rsplit(':');
        let name = from_the_end.next().unwrap_or_default();
        let account = from_the_end.next().map(str::to_owned);
        let get = self.client.get_queue_url().queue_name(name).set_queue_owner_aws_account_id(account);
        let found = get.send().await.map_err(|error| source_error(arn, "sqs:GetQueueUrl", &error))?;
        found.queue_url.ok_or_else(|| SourceError::Refused {
            queue: arn.to_owned(),
            action: "sqs:GetQueueUrl",
            problem: "the answer has no URL".into(),
        })
    }
}
