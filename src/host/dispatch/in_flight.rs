//! A message in flight, kept there by its source's heartbeat until it is settled.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;

use crate::host::source::{Message, Source, SourceError};
use crate::job::Job;
use crate::job::request::Defaults;

/// A message with its source, from receipt to settlement. Dropping it ends the heartbeat.
pub struct InFlight {
    pub source: Arc<dyn Source>,
    pub message: Message,
    /// The job in it; none when the body is not one, which is the handler's to say.
    pub job: Option<Job>,
    heartbeat: Mutex<Option<JoinHandle<()>>>,
}

impl InFlight {
    /// Takes over a message that was just received.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, message: Message, defaults: &Defaults) -> Self {
        let job = Job::from_json(&message.body, defaults).ok();
        let heartbeat = source.heartbeat().map(|_| tokio::spawn(keep(source.clone(), message.clone())));
        Self { source, message, job, heartbeat: Mutex::new(heartbeat) }
    }

    /// Ends the heartbeat, and returns when none is under way any more: one that came after a delay was set would undo it.
    pub async fn release(&self) {
        let heartbeat = self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(heartbeat) = heartbeat {
            heartbeat.abort();
            // The error says that it was aborted.
            let _ = heartbeat.await;
        }
    }
}

impl InFlight {
    /// Whether both may go into one event: first attempts of one source whose images can be denoised as one.
    #[must_use]
    pub fn shares_event_with(&self, other: &Self) -> bool {
        let first = self.message.attempt == 1 && other.message.attempt == 1;
        let in_order = self.message.group.is_some() && self.message.group == other.message.group;
        match (&self.job, &other.job) {
            (Some(job), Some(next)) => {
                first && !in_order && Arc::ptr_eq(&self.source, &other.source) && job.shares_batch_with(next)
            }
            _ => false,
        }
    }

    /// Empty when the body is no job.
    #[must_use]
    pub fn job_id(&self) -> &str {
        self.job.as_ref().map_or("", |job| job.id.as_str())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(heartbeat) = self.heartbeat.get_mut().unwrap_or_else(PoisonError::into_inner) {
            heartbeat.abort();
        }
    }
}

async fn keep(source: Arc<dyn Source>, message: Message) {
    while let Some(pause) = source.heartbeat() {
        tokio::time::sleep(pause).await;
        match source.extend(&message).await {
            Ok(()) => {}
            // The job goes on: if it gets done before the queue's next delivery, that one is a replay.
            Err(error @ SourceError::Lost { .. }) => {
                tracing::warn!(message_id = message.id, %error, "a message could not be kept in flight");
                return;
            }
            Err(error) => tracing::warn!(message_id = message.id, %error, "a heartbeat failed; the next one may not"),
        }
    }
}
