//! The dead-letter queue of the redrive policy, gone through as any consumer would.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use uuid::Uuid;

use super::dead_letter::{REASON, lasting_attributes};
use super::queue::{OutgoingMessage, Queue};
use super::{ConnectError, Settings};
use crate::clock::later;
use crate::host::source::dead_letters::{DeadLetter, DeadLetters, Decision, Operator};
use crate::host::source::{Message, SourceError};

/// A letter that was looked at is hidden from others for so long, should nobody be left to give it back.
const VISIBILITY_SECONDS: u32 = 120;
/// SQS says that there are no more only where it has asked all of its servers, which a long poll does.
const WAIT_SECONDS: u32 = 1;
/// What SQS gives in one answer.
const MAX_RECEIVED: usize = 10;
/// What died later than so long after the walk began is not of it: a host may be at work that lets die again what was sent again.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5);
/// Requests at once when letters are given back.
const AT_ONCE: usize = 16;

/// The messages of an SQS queue that failed for good.
pub struct SqsDeadLetters {
    /// Of jobs.
    queue: Queue,
    dead: Queue,
}

impl SqsDeadLetters {
    /// Asks the queue of jobs for its dead-letter queue.
    ///
    /// # Errors
    /// As [`super::Sqs::connect`]; and where there is no dead-letter queue.
    pub async fn connect(settings: &Settings) -> Result<Self, ConnectError> {
        let address = settings.parsed_url()?;
        let client = settings.client(&address).await?;
        let queue = Queue::open(client.clone(), settings, address.url, address.fifo).await?;
        let Some(url) = queue.dead_letter_queue().await? else {
            let problem = "it has no redrive policy, so nothing that failed is kept".to_owned();
            return Err(SourceError::Refused { queue: queue.url, action: "sqs:GetQueueAttributes", problem }.into());
        };
        let settings = Settings { wait_seconds: WAIT_SECONDS, visibility_seconds: VISIBILITY_SECONDS, ..settings.clone() };
        // Also where it is a FIFO queue: a group is locked while one of its messages is in flight, so several are wanted in one answer.
        let fifo = false;
        let dead = Queue::open(client, &settings, url, fifo).await?;
        Ok(Self { queue, dead })
    }

    /// With its own attributes; without why it died, and without attempts that were made before.
    async fn send_again(&self, message: &Message) -> Result<(), SourceError> {
        let body = self.queue.checked_body(&message.body)?;
        let group = message.record["attributes"]["MessageGroupId"].as_str();
        // A name of its own: within five minutes the queue would take it for the message that died.
        let deduplication = self.queue.fifo().then(|| Uuid::now_v7().to_string());
        let attributes = lasting_attributes(message);
        let again = OutgoingMessage { body, attributes, trace: message.trace, group, deduplication, delay_s: None };
        self.queue.send_to(&self.queue.url, again).await
    }

    /// `kept`: those that stay, and are hidden from others meanwhile.
    async fn walk(&self, operator: &mut dyn Operator, kept: &mut Vec<Message>) -> Result<(), SourceError> {
        let until = later(SystemTime::now(), CLOCKS_DIFFER);
        let mut seen = HashSet::new();
        loop {
            // After `VISIBILITY_SECONDS` those that stay come again, and so may any at any time.
            let received = self.dead.poll(MAX_RECEIVED, String::new()).await?;
            let (new, others): (Vec<_>, Vec<_>) = received
                .into_iter()
                .partition(|message| seen.insert(message.id.clone()) && message.sent.is_none_or(|sent| sent <= until));
            kept.extend(others);
            if new.is_empty() {
                return Ok(());
            }
            for message in new {
                let letter = dead_letter(&message);
                match self.carry_out(operator.decide(&letter), &message).await {
                    Ok(true) => operator.done(&letter),
                    Ok(false) => kept.push(message),
                    Err(error) => {
                        operator.failed(&letter, &error);
                        kept.push(message);
                    }
                }
            }
        }
    }

    /// Whether it is gone from here.
    async fn carry_out(&self, decision: Decision, message: &Message) -> Result<bool, SourceError> {
        match decision {
            Decision::Keep => return Ok(false),
            Decision::SendAgain => self.send_again(message).await?,
            Decision::Remove => {}
        }
        self.dead.delete(message).await.map(|()| true)
    }
}

#[async_trait]
impl DeadLetters for SqsDeadLetters {
    fn source(&self) -> &'static str {
        "sqs"
    }

    fn place(&self) -> &str {
        &self.dead.url
    }

    /// Of one message group of a FIFO queue no more than ten are seen: the group is locked by those.
    async fn go_through(&self, operator: &mut dyn Operator) -> Result<(), SourceError> {
        let mut kept = Vec::new();
        let walked = self.walk(operator, &mut kept).await;
        let given_back = stream::iter(kept).map(async |message| self.dead.hide_for(&message, Duration::ZERO).await);
        let given_back: Vec<_> = given_back.buffer_unordered(AT_ONCE).collect().await;
        for error in given_back.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "a dead letter is hidden for some time: it could not be given back");
        }
        walked
    }
}

fn dead_letter(message: &Message) -> DeadLetter {
    let reason = message.record["messageAttributes"][REASON]["stringValue"].as_str().map(str::to_owned);
    DeadLetter { reason, sent: message.sent, ..DeadLetter::new(message.id.clone(), message.body.clone()) }
}
