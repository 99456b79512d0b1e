//! Messages that wait here until they are due: kept invisible to others, and received once, so that SQS counts no attempt.
//!
//! SQS leaves a message with one receiver for 12 hours. Before that, and when this host ends, a copy takes the message's place: its
//! attribute [`SQS_ATTRIBUTE`] says how many attempts there were. It is sent first and the message deleted then: interrupted in
//! between, the job is there twice, never lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_sqs::types::MessageAttributeValue;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use uuid::Uuid;

use super::dead_letter::MAX_ATTRIBUTES;
use super::lease::is_running_out;
use super::queue::{OutgoingMessage, Queue};
use super::record::{ENDED, attributes_of};
use crate::clock::later;
use crate::host::source::{Message, SourceError};
use crate::protocol::deferral::{Kept, SQS_ATTRIBUTE};

/// More of them would take more requests to keep than they are worth: from then on a copy waits in the queue.
const MAX_HELD: usize = 1_000;
/// SQS's limit of `DelaySeconds`.
const MAX_DELAY: Duration = Duration::from_mins(15);
/// However long the visibility timeout is, what SQS would take back soon is noticed in time.
const MAX_KEEP_EVERY: Duration = Duration::from_mins(30);
/// Requests at once when many messages are kept or moved.
const AT_ONCE: usize = 16;

pub(super) struct Deferred {
    queue: Arc<Queue>,
    keep_every: Duration,
    state: Mutex<State>,
    /// One came, or the host ends.
    news: Notify,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    keeping: bool,
    closed: bool,
}

#[derive(Clone)]
struct Waiting {
    due: Instant,
    message: Message,
}

impl Deferred {
    /// `keep_every`: less than half of the visibility timeout.
    pub(super) fn new(queue: Arc<Queue>, keep_every: Duration) -> Self {
        let keep_every = keep_every.min(MAX_KEEP_EVERY);
        Self { queue, keep_every, state: Mutex::default(), news: Notify::new() }
    }

    /// Takes a message in that is due after `delay`.
    pub(super) async fn hold(self: &Arc<Self>, message: Message, delay: Duration) -> Result<(), SourceError> {
        let waiting = Waiting { due: later(Instant::now(), delay), message };
        let has_room = {
            let state = self.state();
            !state.closed && state.waiting.len() < MAX_HELD
        };
        if !has_room || is_running_out(waiting.message.received.elapsed()) {
            return self.move_on(&waiting).await;
        }
        // Whoever had it extends it no longer, and it must be ours still.
        self.queue.extend(&waiting.message).await?;
        // Closed while SQS was asked, nothing looks after what waits any more.
        if let Some(waiting) = self.keep_with_others(waiting) {
            return self.move_on(&waiting).await;
        }
        self.news.notify_waiters();
        Ok(())
    }

    /// None is left where it is kept.
    fn keep_with_others(self: &Arc<Self>, waiting: Waiting) -> Option<Waiting> {
        let mut state = self.state();
        if state.closed {
            return Some(waiting);
        }
        state.waiting.push(waiting);
        if !state.keeping {
            state.keeping = true;
            tokio::spawn(Arc::clone(self).keep());
        }
        None
    }

    /// Waits for messages that are due, and takes them out.
    pub(super) async fn due(&self, most: usize) -> Vec<Message> {
        loop {
            let news = self.news.notified();
            let next = match self.take_due(most) {
                Ok(due) => return due,
                Err(next) => next,
            };
            tokio::select! {
                () = news => {}
                () = sleep_until(next) => {}
            }
        }
    }

    /// The error is the moment at which the next one is due.
    fn take_due(&self, most: usize) -> Result<Vec<Message>, Option<Instant>> {
        let mut state = self.state();
        let now = Instant::now();
        let mut due = Vec::new();
        while due.len() < most.max(1) {
            let Some(index) = state.waiting.iter().position(|waiting| waiting.due <= now) else { break };
            due.push(state.waiting.remove(index).message);
        }
        let next = state.waiting.iter().map(|waiting| waiting.due).min();
        if due.is_empty() { Err(next) } else { Ok(due) }
    }

    /// Extends what waits, and moves on what SQS would take back soon, until nothing waits any more.
    async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.keep_every).await;
            let waiting: Vec<Waiting> = {
                let mut state = self.state();
                state.keeping = !(state.closed || state.waiting.is_empty());
                if !state.keeping {
                    return;
                }
                state.waiting.clone()
            };
            stream::iter(waiting).for_each_concurrent(AT_ONCE, |waiting| self.keep_one(waiting)).await;
        }
    }

    async fn keep_one(&self, waiting: Waiting) {
        let receipt = &waiting.message.receipt;
        // Whoever has taken it meanwhile keeps it.
        if !self.state().waiting.iter().any(|waiting| waiting.message.receipt == *receipt) {
            return;
        }
        if !is_running_out(waiting.message.received.elapsed()) {
            match self.queue.extend(&waiting.message).await {
                Ok(()) => return,
                Err(error @ SourceError::Lost { .. }) => {
                    tracing::warn!(message_id = waiting.message.id, %error, "a message that waits could not be kept");
                    drop(self.remove(receipt));
                }
                Err(error) => {
                    tracing::warn!(message_id = waiting.message.id, %error, "a heartbeat failed; the next one may not");
                }
            }
            return;
        }
        let Some(waiting) = self.remove(receipt) else { return };
        if let Err(error) = self.move_on(&waiting).await {
            tracing::warn!(message_id = waiting.message.id, %error, "a message that waits was not sent again; SQS brings it back");
        }
    }

    fn remove(&self, receipt: &str) -> Option<Waiting> {
        let mut state = self.state();
        let index = state.waiting.iter().position(|waiting| waiting.message.receipt == receipt)?;
        Some(state.waiting.remove(index))
    }

    /// Puts a copy into the queue that is due then or after SQS's longest delay, in the place of the message.
    async fn move_on(&self, waiting: &Waiting) -> Result<(), SourceError> {
        let Waiting { due, message } = waiting;
        let delay = due.saturating_duration_since(Instant::now());
        // A copy would be the last of its group. It has to be, once SQS would take the message back anyway.
        if self.queue.fifo() && !is_running_out(message.received.elapsed()) {
            return self.queue.hide_for(message, delay).await;
        }
        let Some(outgoing_message) = self.copy(message, delay)? else {
            tracing::warn!(
                message_id = message.id,
                "a message has no room for the attribute that counts its attempts: this attempt is counted"
            );
            return self.queue.hide_for(message, delay).await;
        };
        self.queue.send_to(&self.queue.url, outgoing_message).await?;
        self.queue.delete(message).await
    }

    /// None where ten attributes, or the largest message, leave no room for another attribute.
    fn copy<'a>(&self, message: &'a Message, delay: Duration) -> Result<Option<OutgoingMessage<'a>>, SourceError> {
        let body = self.queue.checked_body(&message.body)?;
        let mut attributes = attributes_of(message);
        let before = attributes.remove(SQS_ATTRIBUTE).and_then(|value| Kept::decode(value.string_value()?));
        let kept = Kept {
            attempts: message.attempt.saturating_sub(1),
            deferral: message.deferral.map(|deferral| deferral.to_string()).unwrap_or_default(),
            message_id: before.map_or_else(|| message.id.clone(), |before| before.message_id),
        };
        let Ok(text) = serde_json::to_string(&kept) else { return Ok(None) };
        let bytes =
            message.body.len() + message.record["messageAttributes"].to_string().len() + SQS_ATTRIBUTE.len() + text.len();
        let bytes = bytes + message.ended.as_ref().map_or(0, |ended| ENDED.len() + "String".len() + ended.encode().len());
        let has_room = attributes.len() < MAX_ATTRIBUTES && bytes + "String".len() <= self.queue.most_bytes();
        if !has_room {
            return Ok(None);
        }
        let text = MessageAttributeValue::builder().data_type("String").string_value(text).build().ok();
        attributes.extend(text.map(|text| (SQS_ATTRIBUTE.to_owned(), text)));
        let whole_s = delay.min(MAX_DELAY).as_secs_f64().ceil() as u32;
        Ok(Some(OutgoingMessage {
            body,
            attributes,
            trace: message.trace,
            group: message.record["attributes"]["MessageGroupId"].as_str(),
            deduplication: self.queue.fifo().then(|| Uuid::now_v7().to_string()),
            delay_s: (!self.queue.fifo()).then_some(whole_s),
        }))
    }

    /// Takes nothing in any more; what waits is left to the visibility timeout.
    pub(super) fn stop(&self) {
        self.state().closed = true;
        self.news.notify_waiters();
    }

    /// Hands what waits on to other hosts.
    pub(super) async fn close(&self) {
        self.stop();
        let waiting = std::mem::take(&mut self.state().waiting);
        stream::iter(waiting)
            .for_each_concurrent(AT_ONCE, async |waiting| {
                if let Err(error) = self.move_on(&waiting).await {
                    let message_id = &waiting.message.id;
                    tracing::warn!(message_id, %error, "not handed on; it comes back when its visibility timeout ends");
                }
            })
            .await;
    }

    /// Messages that wait here.
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// A panic under the lock leaves whole messages: every change is one call.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
