//! What polls bring, until someone takes it: a poll whose caller is gone goes on, and its messages stay ours meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use uuid::Uuid;

use super::queue::Queue;
use crate::host::source::{Message, SourceError};

pub(super) struct Inbox {
    queue: Arc<Queue>,
    /// How often messages are extended that no one has taken yet: more often than [`super::Sqs`] asks for, so that a
    /// message that is taken has a full heartbeat's time before its next extension.
    keep_every: Duration,
    state: Mutex<State>,
    /// A poll has ended, or the inbox is closed.
    news: Notify,
}

#[derive(Default)]
struct State {
    arrived: VecDeque<Message>,
    failure: Option<SourceError>,
    polling: bool,
    keeping: bool,
    closed: bool,
}

impl Inbox {
    pub(super) fn new(queue: Arc<Queue>, heartbeat: Duration) -> Self {
        Self { queue, keep_every: heartbeat / 2, state: Mutex::default(), news: Notify::new() }
    }

    /// Waits for messages; an empty list once the inbox is closed.
    pub(super) async fn receive(self: &Arc<Self>, most: usize) -> Result<Vec<Message>, SourceError> {
        loop {
            let news = self.news.notified();
            if let Some(result) = self.take_or_poll(most) {
                return result;
            }
            news.await;
        }
    }

    fn take_or_poll(self: &Arc<Self>, most: usize) -> Option<Result<Vec<Message>, SourceError>> {
        let mut state = self.state();
        if state.closed {
            return Some(Ok(Vec::new()));
        }
        if !state.arrived.is_empty() {
            let count = state.arrived.len().min(most.max(1));
            return Some(Ok(state.arrived.drain(..count).collect()));
        }
        if let Some(error) = state.failure.take() {
            return Some(Err(error));
        }
        if !state.polling {
            state.polling = true;
            tokio::spawn(Arc::clone(self).poll(most));
        }
        None
    }

    async fn poll(self: Arc<Self>, most: usize) {
        let result = self.queue.poll(most, Uuid::now_v7().to_string()).await;
        {
            let mut state = self.state();
            state.polling = false;
            match result {
                Ok(messages) => state.arrived.extend(messages),
                Err(error) => state.failure = Some(error),
            }
            if !state.arrived.is_empty() && !state.keeping {
                state.keeping = true;
                tokio::spawn(Arc::clone(&self).keep());
            }
        }
        self.news.notify_waiters();
    }

    /// Extends what no one has taken yet, until everything is taken.
    async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.keep_every).await;
            let receipts: Vec<String> = {
                let mut state = self.state();
                state.keeping = !(state.closed || state.arrived.is_empty());
                if !state.keeping {
                    return;
                }
                state.arrived.iter().map(|message| message.receipt.clone()).collect()
            };
            for receipt in receipts {
                let still_here = self.state().arrived.iter().find(|message| message.receipt == receipt).cloned();
                let Some(message) = still_here else { continue };
                if let Err(error) = self.queue.extend(&message).await {
                    tracing::debug!(message_id = message.id, %error, "a message that no one took was not extended");
                    if matches!(error, SourceError::Lost { .. }) {
                        self.state().arrived.retain(|message| message.receipt != receipt);
                    }
                }
            }
        }
    }

    /// Nothing is handed out from now on; does not wait for the poll under way.
    pub(super) fn stop(&self) {
        self.state().closed = true;
        self.news.notify_waiters();
    }

    /// Waits for the poll under way, which SQS would answer into the void, and puts back what no one took.
    pub(super) async fn close(&self) {
        self.stop();
        loop {
            let news = self.news.notified();
            if !self.state().polling {
                break;
            }
            news.await;
        }
        let left = std::mem::take(&mut self.state().arrived);
        join_all(left.iter().map(|message| self.requeue(message))).await;
    }

    async fn requeue(&self, message: &Message) {
        if let Err(error) = self.queue.hide_for(message, Duration::ZERO).await {
            tracing::warn!(message_id = message.id, %error, "not put back; it comes back when its visibility timeout ends");
        }
    }

    /// Messages that have arrived and that no one has taken.
    pub(super) fn waiting(&self) -> usize {
        self.state().arrived.len()
    }

    /// A panic under the lock leaves whole messages: every change is one assignment.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
