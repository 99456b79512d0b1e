//! A message in flight, kept there by its source's heartbeat until it is settled.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tracing::{Instrument as _, Span};

use super::event;
use super::source::{Message, Source, SourceError};
use crate::job::notification::NotificationTarget;
use crate::job::outcome::JobError;
use crate::job::request::Refusal;
use crate::job::request::catalogue::Catalogue;
use crate::job::trace::Trace;
use crate::job::{Job, JobId, trace};
use crate::protocol::deferral::DeferReason;

/// A message with its source, from its receipt until it is settled. Dropping it ends the heartbeat.
pub struct InFlight {
    pub source: Arc<dyn Source>,
    pub message: Message,
    /// The job in it, or why its body is none: read once, here. What the caller is notified of a refusal is the handler's to say.
    pub job: Result<Job, Box<Refusal>>,
    /// The place of the model that it is for, in the catalogue; or why no model of this host does the job.
    pub model: Result<usize, JobError>,
    /// Every line of the log about this attempt stands in it.
    pub span: Span,
    heartbeat: Mutex<Option<JoinHandle<()>>>,
}

impl InFlight {
    /// Takes over a message that was just received.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, message: Message, catalogue: &Catalogue) -> Self {
        let job = Job::from_message(&message.body, message.trace, catalogue).map_err(Box::new);
        let model = match &job {
            Ok(job) => catalogue.place(job),
            Err(refusal) => Ok(catalogue.place_of_refused(refusal)),
        };
        let job_id = job.as_ref().map_or_else(|refusal| refusal.job_id.as_ref(), |job| Some(&job.id));
        let span = trace::span(job_id.map_or("", JobId::as_str), source.name(), message.attempt, message.trace);
        let in_flight = Self { source, message, job, model, span, heartbeat: Mutex::default() };
        in_flight.keep_again();
        in_flight
    }

    /// Begins the heartbeat again after [`Self::release`].
    pub fn keep_again(&self) {
        let heartbeat = self.source.heartbeat().map(|_| {
            let keeping = keep(self.source.clone(), self.message.clone());
            tokio::spawn(keeping.instrument(self.span.clone()))
        });
        *self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner) = heartbeat;
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
    /// What its event and the reply to it call the message.
    #[must_use]
    pub fn name(&self) -> &str {
        event::name(&self.source.shape(), &self.message)
    }

    /// Whether both may go into one event: first attempts of one source whose images can be denoised as one.
    #[must_use]
    pub fn shares_event_with(&self, other: &Self) -> bool {
        let first = self.message.attempt == 1 && other.message.attempt == 1;
        let in_order = self.message.group.is_some() && self.message.group == other.message.group;
        match (&self.job, &other.job) {
            (Ok(job), Ok(next)) => {
                first
                    && !in_order
                    && self.name() != other.name()
                    && Arc::ptr_eq(&self.source, &other.source)
                    && job.shares_batch_with(next)
            }
            _ => false,
        }
    }

    /// Its message, and its span in an exported trace, where it has one.
    #[must_use]
    pub fn traced(&self) -> (&Message, Option<Trace>) {
        (&self.message, Trace::of(&self.span))
    }

    /// Its job failed as often as it may: it is not to be started again.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.message.ended.is_some() || self.message.deferral.is_some_and(|deferral| deferral.reason == DeferReason::EndUnknown)
    }

    /// Somebody had the message before, and may have told its caller of an end.
    #[must_use]
    pub fn came_again(&self) -> bool {
        self.job.is_ok() && (self.message.attempt > 1 || self.message.deferral.is_some())
    }

    /// Whether it stays with the dead letters where it is refused: no one hears of it, or all that was refused is to be kept.
    #[must_use]
    pub fn is_kept_if_refused(&self, has_receiver: bool) -> bool {
        !has_receiver || self.source.keeps_refused()
    }

    /// How long it has waited for its model, here and where it was put off for it.
    #[must_use]
    pub fn waited(&self) -> Duration {
        let before = self.message.deferral.filter(|deferral| deferral.reason == DeferReason::ModelBusy);
        let before = before.map_or(Duration::ZERO, |deferral| deferral.waited(SystemTime::now()));
        self.message.received.elapsed().max(before)
    }

    /// Whether it is for the model at this place of the catalogue.
    #[must_use]
    pub fn is_for(&self, model: usize) -> bool {
        self.model.as_ref().is_ok_and(|place| *place == model)
    }

    /// Empty when the body is no job.
    #[must_use]
    pub fn job_id(&self) -> &str {
        self.job.as_ref().map_or("", |job| job.id.as_str())
    }

    /// Of whom a notification about it speaks, as far as its body could be read.
    #[must_use]
    pub fn notification_target(&self) -> NotificationTarget<'_> {
        match &self.job {
            Ok(job) => job.into(),
            Err(refusal) => refusal.as_ref().into(),
        }
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
