//! SQS: jobs out of a queue by long poll, each kept invisible to others until it is settled.
//!
//! - A message is ours for `visibility_seconds` from its receipt, and renewed every half of that, up to SQS's 12 hours in all.
//! - Its receive count is its attempt, with those of the message that it is a copy of. SQS counts every receipt, also of what was put
//!   back untried.
//! - What is deferred waits here, see `deferred.rs`.
//! - A FIFO queue is asked for one message at a time: SQS gives out the next of a group only when the one before is settled, and
//!   that one first again when it is retried. So order holds however many handlers there are.
//! - What failed for good is moved to the dead-letter queue by us, see `dead_letter.rs`.

mod answers;
mod dead_letter;
pub mod dead_letters;
mod deferred;
mod error;
mod inbox;
pub mod inspect;
mod lease;
mod queue;
mod queue_url;
mod record;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use self::answers::JsonAnswers;
use self::deferred::Deferred;
use self::inbox::Inbox;
use self::queue::{OutgoingMessage, Queue};
use self::queue_url::QueueUrl;
use super::{ConnectError, Depth, Message, Shape, Source, SourceError};
use crate::aws::{self, Access, aws_settings};
use crate::job::trace::Trace;
use crate::protocol::deferral::{DeferReason, Deferral};
use crate::setting::{SettingError, check_address};

aws_settings! {
    section = "sources.sqs";
    /// Settings of section `sources.sqs`.
    #[derive(Debug, Clone, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Settings {
        /// The queue; without it this source is off. Its server and region are taken from here where `endpoint_url` and `region` say
        /// nothing else.
        pub queue_url: Option<String>,
        /// Seconds that a poll waits for messages on top of `attempt_timeout_ms`, 1 to 20; [`Source::close`] may take as long.
        pub wait_seconds: u32,
        /// Seconds that a message stays invisible to others without a heartbeat, 2 to 43200: so long after this process is killed
        /// its messages are delivered again. The heartbeat is half of it.
        pub visibility_seconds: u32,
        /// true: refused messages are dead-lettered even when their sender was notified; else only those that no one could be notified of.
        pub keep_refused: bool,
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_url: None,
            region: None,
            endpoint_url: None,
            access_key_id: None,
            secret_access_key: None,
            wait_seconds: 20,
            visibility_seconds: 120,
            connect_timeout_ms: 3_000,
            attempt_timeout_ms: 10_000,
            operation_timeout_ms: 30_000,
            max_attempts: 3,
            keep_refused: false,
        }
    }
}

/// The queue. Dropped without [`Source::close`], it leaves what it has not handed out to the visibility timeout.
pub struct Sqs {
    queue: Arc<Queue>,
    inbox: Arc<Inbox>,
    deferred: Arc<Deferred>,
    heartbeat: Duration,
    unsettled: Mutex<Unsettled>,
    keep_refused: bool,
}

/// What the queue does not let us do with messages that are done with.
#[derive(Default)]
struct Unsettled {
    /// Why the last one could not be deleted, where it may not be.
    undeletable: Option<String>,
    /// Why the last one that failed for good could not be moved, where it may not be.
    unmovable: Option<String>,
    /// Receipts of those whose copy is among the dead letters, and that are to be deleted.
    kept_dead: HashSet<String>,
}

fn refusal(result: &Result<(), SourceError>) -> Option<String> {
    match result {
        Err(error @ SourceError::Refused { .. }) => Some(error.to_string()),
        _ => None,
    }
}

impl Sqs {
    /// Asks the queue for its name, its limits and its dead-letter queue, so that what is wrong is found before the first job.
    ///
    /// # Errors
    /// Names the setting that is wrong, or says which permission or queue is missing.
    pub async fn connect(settings: &Settings) -> Result<Self, ConnectError> {
        let address = settings.parsed_url()?;
        let client = settings.client(&address).await?;
        let queue = Arc::new(Queue::open(client, settings, address.url, address.fifo).await?);
        let dead_letter_queue = queue.dead_letter_queue().await?;
        tracing::info!(queue = queue.url, dead_letter_queue, "SQS queue found");
        let heartbeat = Duration::from_secs(settings.visibility_seconds.into()) / 2;
        let inbox = Arc::new(Inbox::new(Arc::clone(&queue), heartbeat));
        let deferred = Arc::new(Deferred::new(Arc::clone(&queue), heartbeat / 2));
        Ok(Self { queue, inbox, deferred, heartbeat, unsettled: Mutex::default(), keep_refused: settings.keep_refused })
    }

    /// Once, however often the message's deletion has to be tried.
    async fn keep_dead(&self, message: &Message, reason: &str) -> Result<(), SourceError> {
        if !self.unsettled().kept_dead.contains(&message.receipt) {
            self.queue.keep_dead(message, reason).await?;
            self.unsettled().kept_dead.insert(message.receipt.clone());
        }
        Ok(())
    }

    /// A panic under the lock leaves nothing half done: every change is one assignment.
    fn unsettled(&self) -> MutexGuard<'_, Unsettled> {
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sqs {
    fn drop(&mut self) {
        self.inbox.stop();
        self.deferred.stop();
    }
}

impl Settings {
    fn parsed_url(&self) -> Result<QueueUrl, SettingError> {
        let within = |key: &str, value: u32, least: u32, most: u32, why: &str| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let problem = format!("must be {least} to {most} seconds ({why}), got {value}");
            Err(SettingError::new(&format!("sources.sqs.{key}"), problem))
        };
        within("wait_seconds", self.wait_seconds, 1, 20, "SQS's limit")?;
        within("visibility_seconds", self.visibility_seconds, 2, 43_200, "SQS's limit is 12 hours")?;
        check_address("sources.sqs.endpoint_url", self.endpoint_url.as_deref())?;
        QueueUrl::parse(self.queue_url.as_deref().unwrap_or_default())
    }

    async fn client(&self, address: &QueueUrl) -> Result<Client, SettingError> {
        let access = Access {
            region: self.region.clone().or_else(|| address.region.clone()),
            endpoint_url: Some(self.endpoint_url.clone().unwrap_or_else(|| address.endpoint.clone())),
            ..self.access()
        };
        let config = aws_sdk_sqs::config::Builder::from(&access.load().await?).retry_partition(aws::retry_partition());
        Ok(Client::from_conf(config.interceptor(JsonAnswers).build()))
    }
}

#[async_trait]
impl Source for Sqs {
    fn name(&self) -> &'static str {
        "sqs"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn knows_when_sent(&self) -> bool {
        true
    }

    fn shape(&self) -> Shape {
        Shape::Sqs
    }

    fn keeps_refused(&self) -> bool {
        self.keep_refused
    }

    fn heartbeat(&self) -> Option<Duration> {
        Some(self.heartbeat)
    }

    /// Nothing while the queue does not let us delete or move what is done: every job would be reported again and again.
    async fn receive(&self, most: usize) -> Result<Vec<Message>, SourceError> {
        if let Some(problem) = self.trouble() {
            return Err(SourceError::Refused { queue: self.queue.url.clone(), action: "receive", problem });
        }
        tokio::select! {
            biased;
            due = self.deferred.due(most) => Ok(due),
            received = self.inbox.receive(most) => received,
        }
    }

    fn trouble(&self) -> Option<String> {
        let unsettled = self.unsettled();
        unsettled.undeletable.clone().or_else(|| unsettled.unmovable.clone())
    }

    async fn extend(&self, message: &Message) -> Result<(), SourceError> {
        self.queue.extend(message).await
    }

    async fn ack(&self, message: &Message) -> Result<(), SourceError> {
        let deleted = self.queue.delete(message).await;
        self.unsettled().undeletable = refusal(&deleted);
        deleted
    }

    async fn retry(&self, message: &Message, delay: Duration) -> Result<(), SourceError> {
        self.queue.hide_for(message, delay).await
    }

    /// Held here, see `deferred.rs`. A FIFO queue's message keeps its place in its group; when this host ends it comes back as another
    /// attempt.
    async fn defer(&self, message: &Message, delay: Duration, reason: DeferReason) -> Result<(), SourceError> {
        let deferral = Deferral::next(message.deferral, reason, SystemTime::now());
        self.deferred.hold(Message { deferral: Some(deferral), ..message.clone() }, delay).await
    }

    async fn release(&self, message: &Message) -> Result<(), SourceError> {
        self.queue.hide_for(message, Duration::ZERO).await
    }

    async fn dead_letter(&self, message: &Message, reason: &str) -> Result<(), SourceError> {
        let moved = async {
            self.keep_dead(message, reason).await?;
            self.queue.delete(message).await
        };
        let moved = moved.await;
        let mut unsettled = self.unsettled();
        unsettled.unmovable = refusal(&moved);
        if matches!(moved, Ok(()) | Err(SourceError::Lost { .. })) {
            unsettled.kept_dead.remove(&message.receipt);
        }
        moved
    }

    async fn send(&self, job_id: &str, body: &[u8], trace: Option<Trace>) -> Result<(), SourceError> {
        self.send_for(None, job_id, body, trace).await
    }

    /// A standard queue is fair among the groups of its messages; a FIFO queue would put a tenant's jobs into an order.
    async fn send_for(&self, tenant: Option<&str>, job_id: &str, body: &[u8], trace: Option<Trace>) -> Result<(), SourceError> {
        let body = self.queue.checked_body(body)?;
        // Not the job's id: a job that failed may be sent again within the five minutes in which SQS drops doubles. The
        // attempts of this one request have the same.
        let deduplication = self.queue.fifo().then(|| Uuid::now_v7().to_string());
        let group = if self.queue.fifo() { Some(job_id.to_owned()) } else { tenant.map(group_id) };
        let outgoing_message =
            OutgoingMessage { body, attributes: HashMap::new(), trace, group: group.as_deref(), deduplication, delay_s: None };
        self.queue.send_to(&self.queue.url, outgoing_message).await
    }

    /// SQS does not say how old its oldest message is (`CloudWatch` does: `ApproximateAgeOfOldestMessage`).
    async fn depth(&self) -> Result<Depth, SourceError> {
        let names = [QueueAttributeName::ApproximateNumberOfMessages, QueueAttributeName::ApproximateNumberOfMessagesDelayed];
        let found = self.queue.attributes(&names).await?;
        let counted = names.iter().filter_map(|name| found.get(name)?.parse::<u64>().ok()).fold(0, u64::saturating_add);
        Ok(Depth { waiting: counted + (self.inbox.waiting() + self.deferred.waiting()) as u64, oldest: None })
    }

    async fn close(&self) {
        tokio::join!(self.inbox.close(), self.deferred.close());
    }
}

/// The tenant where SQS takes it for a `MessageGroupId` (1 to 128 letters, digits and punctuation), else its hash.
fn group_id(tenant: &str) -> String {
    if (1..=128).contains(&tenant.len()) && tenant.bytes().all(|byte| byte.is_ascii_graphic()) {
        return tenant.to_owned();
    }
    base16ct::lower::encode_string(&Sha256::digest(tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_becomes_a_group_that_sqs_takes() {
        assert_eq!(group_id("u-17@example.com"), "u-17@example.com");
        for odd in ["", "Ada Lovelace", "\u{e4}", &"x".repeat(129)] {
            assert_eq!(group_id(odd).len(), 64, "{odd:?}");
        }
    }
}
