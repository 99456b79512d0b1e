//! What becomes of messages once their invocation has ended: reported, acknowledged, put back or dead-lettered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::Assignment;
use super::disposition::{Disposition, dispositions};
use crate::backoff::{Backoff, pause};
use crate::fault_point::fault_point;
use crate::host::answer::Ended;
use crate::host::event;
use crate::host::in_flight::InFlight;
use crate::host::job_service::Direct;
use crate::host::jobs::{Jobs, State};
use crate::host::notification_sender::NotificationSender;
use crate::host::source::SourceError;
use crate::host::store_health::StoreHealth;
use crate::job::measured::Measured;
use crate::job::outcome::{JobError, Problem, RetryPolicy};
use crate::metrics::Metrics;
use crate::protocol::deferral::DeferReason;
use crate::protocol::reply::{JobOutcome, JobReport};
use crate::setting::Secret;

/// [`JobError::code`] of a request under another job's id.
pub(super) const CONFLICT: &str = "conflict";

/// How often and how soon a job is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// After this many deliveries the caller is notified `failed`, and the message is dead-lettered.
    pub max_attempts: u32,
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
}

/// Settles messages in the background, so that the handler takes the next one meanwhile; clones share what is under way.
#[derive(Clone)]
pub struct Acknowledger {
    pub jobs: Arc<Jobs>,
    pub notification_sender: NotificationSender,
    pub retries: Retries,
    /// What an HTTP event of the host presents to the handler.
    pub token: Option<Secret>,
    pub metrics: Metrics,
    pub store_health: StoreHealth,
    pub under_way: TaskTracker,
    /// The host ends: a task that waits for a better time abandons it.
    pub force_shutdown: CancellationToken,
}

impl Acknowledger {
    /// The event of an assignment, in AWS's shape.
    #[must_use]
    pub fn event(&self, assignment: &Assignment) -> Value {
        match assignment {
            Assignment::Messages(in_flight) => {
                let messages: Vec<_> = in_flight.iter().map(|in_flight| &in_flight.message).collect();
                in_flight.first().map_or(Value::Null, |first| event::batch(&first.source.shape(), &messages))
            }
            Assignment::Direct(direct) => {
                event::http_generate(&direct.body, self.token.as_ref().map(Secret::reveal), direct.job.trace)
            }
        }
    }

    /// Settles an assignment; returns at once.
    pub fn acknowledge(&self, assignment: Assignment, ended: Ended) {
        let acknowledger = self.clone();
        self.under_way.spawn(async move {
            match assignment {
                Assignment::Messages(in_flight) => {
                    let applied = in_flight.iter().zip(dispositions(&in_flight, &ended));
                    let acknowledger = &acknowledger;
                    join_all(applied.map(|(in_flight, disposition)| {
                        let applying = acknowledger.apply(in_flight, disposition);
                        acknowledger.guarded(in_flight, applying).instrument(in_flight.span.clone())
                    }))
                    .await;
                }
                Assignment::Direct(direct) => {
                    let span = Direct::span(&direct.job);
                    acknowledger.answer(direct, ended).instrument(span).await;
                }
            }
        });
    }

    /// A job that someone cancelled before it was started here. It may be complete nevertheless: by another host, or by an attempt
    /// whose notification was not taken.
    pub fn cancelled(&self, in_flight: InFlight) {
        let acknowledger = self.clone();
        let span = in_flight.span.clone();
        let telling = async move { acknowledger.guarded(&in_flight, acknowledger.tell_cancelled(&in_flight)).await };
        self.under_way.spawn(telling.instrument(span));
    }

    async fn tell_cancelled(&self, in_flight: &InFlight) {
        match self.tell_ended(in_flight, &JobError::Cancelled, false).await {
            Ok(State::Complete) => {
                self.count(in_flight, JobOutcome::Complete.as_str(), None);
                self.over(in_flight, State::Complete, None).await;
            }
            Ok(_) => {
                self.count(in_flight, "cancelled", None);
                self.over(in_flight, State::Cancelled, None).await;
            }
            Err(unknown) => self.try_again(in_flight, &unknown).await,
        }
    }

    /// Tells the end of a job that is not to be started again.
    pub fn tell_end(&self, in_flight: InFlight) {
        let acknowledger = self.clone();
        let span = in_flight.span.clone();
        let telling = async move {
            let problem = "the process that generated it died, as often as a job is tried".to_owned();
            let error = JobError::HandlerDied { problem };
            acknowledger.guarded(&in_flight, acknowledger.end_as_failed(&in_flight, &error)).await;
        };
        self.under_way.spawn(telling.instrument(span));
    }

    /// A panic must not leave a message with nobody: until this host ends no queue would bring it back.
    async fn guarded(&self, in_flight: &InFlight, settling: impl Future<Output = ()>) {
        if AssertUnwindSafe(settling).catch_unwind().await.is_ok() {
            return;
        }
        let problem = "settling its message failed; this is a bug of atelier".to_owned();
        tracing::error!(message_id = in_flight.message.id, problem, "a message is put back");
        self.try_again(in_flight, &JobError::Internal { problem }).await;
    }

    async fn apply(&self, in_flight: &InFlight, disposition: Disposition) {
        match disposition {
            Disposition::Untried => {
                self.count(in_flight, "untried", None);
                requeue_known(&self.jobs, in_flight).await;
            }
            Disposition::Taken => {
                self.count(in_flight, JobOutcome::Complete.as_str(), None);
                self.over(in_flight, State::Complete, None).await;
            }
            Disposition::Failed(error) if in_flight.message.attempt < self.retries.max_attempts => {
                self.count(in_flight, JobOutcome::Retry.as_str(), None);
                self.try_again(in_flight, &error).await;
            }
            Disposition::Failed(error) => {
                self.count(in_flight, JobOutcome::DeadLetter.as_str(), None);
                self.end_as_failed(in_flight, &error).await;
            }
            Disposition::Reported(report) => self.finalize(in_flight, report).await,
        }
    }

    /// Notifies the caller, then the queue.
    async fn finalize(&self, in_flight: &InFlight, report: JobReport) {
        let is_refused = report.is_refused();
        let is_notified = report.job_id.is_some() && !report.notifications.is_empty();
        let JobReport { outcome, error, notifications, measured, .. } = report;
        let had_generated = in_flight.message.deferral.is_some_and(|deferral| deferral.reason == DeferReason::ResultHeld);
        let has_generated = measured.as_ref().is_some_and(|measured| measured.denoising_steps > 0);
        if had_generated && has_generated {
            self.metrics.generated_again();
        }
        if matches!(outcome, JobOutcome::Failed | JobOutcome::DeadLetter) {
            self.jobs.ending(known_id(&self.jobs, in_flight));
            let dead_letter = outcome == JobOutcome::DeadLetter;
            if let Err(unknown) = self.note_failed(in_flight, error.as_ref(), &notifications, dead_letter).await {
                return self.try_again(in_flight, &unknown).await;
            }
        }
        fault_point!("before-tell");
        let delivered = tokio::select! {
            delivered = self.notification_sender.deliver(&notifications) => delivered,
            // The next host sends them again, with the same ids.
            () = self.force_shutdown.cancelled() => {
                self.count(in_flight, "untried", measured.as_ref());
                return requeue_known(&self.jobs, in_flight).await;
            }
        };
        if let Err(undelivered) = delivered {
            self.count(in_flight, JobOutcome::Retry.as_str(), measured.as_ref());
            return self.try_again(in_flight, &undelivered).await;
        }
        fault_point!("after-tell");
        // No one heard of it, or all that was refused is to be kept.
        let outcome =
            if is_refused && (!is_notified || in_flight.source.keeps_refused()) { JobOutcome::DeadLetter } else { outcome };
        if is_refused {
            self.metrics.refused(in_flight.source.name(), outcome.as_str());
        }
        self.count(in_flight, outcome.as_str(), measured.as_ref());
        let error = error.map(|error| json!(error));
        match outcome {
            JobOutcome::Complete => self.over(in_flight, State::Complete, None).await,
            JobOutcome::Failed => self.over(in_flight, failed_state(error.as_ref()), error).await,
            JobOutcome::Retry => self.retry_later(in_flight, error).await,
            JobOutcome::StoreUnavailable if has_generated || had_generated => {
                self.wait_for_store(in_flight, DeferReason::ResultHeld, error).await;
            }
            JobOutcome::StoreUnavailable => self.wait_for_store(in_flight, DeferReason::StoreUnavailable, error).await,
            JobOutcome::DeadLetter => self.dead_letter(in_flight, error).await,
        }
    }

    pub(super) fn count(&self, in_flight: &InFlight, outcome: &str, measured: Option<&Measured>) {
        self.metrics.job(in_flight.source.name(), outcome, measured);
    }

    pub(super) async fn over(&self, in_flight: &InFlight, state: State, error: Option<Value>) {
        self.jobs.end(known_id(&self.jobs, in_flight), state, error);
        if self.ack(in_flight).await && state != State::Complete {
            self.forget_failed(in_flight).await;
        }
        fault_point!("after-ack");
    }

    /// Notifies the caller how a job ended that no handler could report, or that was cancelled: with its images if they are stored, else
    /// as failed.
    async fn tell_ended(&self, in_flight: &InFlight, error: &JobError, dead_letter: bool) -> Result<State, JobError> {
        if self.notification_sender.tell_complete(in_flight).await? {
            return Ok(State::Complete);
        }
        let notifications = self.notification_sender.failed(in_flight, error)?;
        self.note_failed(in_flight, Some(&Problem::from(error)), &notifications, dead_letter).await?;
        self.notification_sender.deliver(&notifications).await.map(|()| State::Failed)
    }

    /// Until the queue has heard it: a message that comes back is reported again. Its heartbeat keeps it here meanwhile. Whether it has.
    async fn ack(&self, in_flight: &InFlight) -> bool {
        let Retries { initial_backoff, max_backoff, .. } = self.retries;
        let mut backoff = Backoff::new(initial_backoff, max_backoff);
        loop {
            let error = match in_flight.source.ack(&in_flight.message).await {
                Err(error) if !matches!(error, SourceError::Lost { .. } | SourceError::Gone { .. }) => error,
                result => return done(in_flight, "acknowledged", result),
            };
            tracing::warn!(message_id = in_flight.message.id, %error, "a job that has ended could not be acknowledged yet");
            tokio::select! {
                () = tokio::time::sleep(backoff.next_pause()) => {}
                () = self.force_shutdown.cancelled() => return false,
            }
        }
    }

    pub(super) async fn try_again(&self, in_flight: &InFlight, error: &JobError) {
        tracing::warn!(code = error.code(), %error, "a job did not end");
        let problem = Some(json!(Problem::from(error)));
        match error.retry_policy() {
            RetryPolicy::Wait => self.wait_for_store(in_flight, DeferReason::StoreUnavailable, problem).await,
            RetryPolicy::Retry | RetryPolicy::Terminal => self.retry_later(in_flight, problem).await,
        }
    }

    async fn retry_later(&self, in_flight: &InFlight, error: Option<Value>) {
        let Retries { initial_backoff, max_backoff, .. } = self.retries;
        let delay = pause(initial_backoff, max_backoff, in_flight.message.attempt);
        tracing::warn!(
            code = error.as_ref().and_then(|error| error["code"].as_str()),
            delay_ms = delay.as_millis() as u64,
            "a job is tried again"
        );
        self.jobs.requeue(known_id(&self.jobs, in_flight), error);
        in_flight.release().await;
        done(in_flight, "put back", in_flight.source.retry(&in_flight.message, delay).await);
    }

    /// The last attempt failed and the handler could not report it. A job that died over and over is not started again only
    /// because its caller cannot be notified now.
    async fn end_as_failed(&self, in_flight: &InFlight, error: &JobError) {
        let Retries { initial_backoff, max_backoff, .. } = self.retries;
        let mut backoff = Backoff::new(initial_backoff, max_backoff);
        self.jobs.ending(known_id(&self.jobs, in_flight));
        loop {
            match self.tell_ended(in_flight, error, true).await {
                Ok(State::Complete) => return self.over(in_flight, State::Complete, None).await,
                Ok(_) => return self.dead_letter(in_flight, Some(json!(Problem::from(error)))).await,
                Err(unknown) if unknown.retry_policy() == RetryPolicy::Wait => {
                    let problem = Some(json!(Problem::from(&unknown)));
                    return self.wait_for_store(in_flight, DeferReason::EndUnknown, problem).await;
                }
                Err(undelivered) => {
                    tracing::warn!(error = %undelivered, "a failure could not be reported yet");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_pause()) => {}
                () = self.force_shutdown.cancelled() => return requeue_known(&self.jobs, in_flight).await,
            }
        }
    }

    pub(super) async fn dead_letter(&self, in_flight: &InFlight, error: Option<Value>) {
        let reason = error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("it failed").to_owned();
        tracing::error!(error = reason, "a job failed for good");
        match &in_flight.job {
            // The id is another job's: nothing is known here of that one.
            Ok(job) if error.as_ref().is_some_and(|error| error["code"] == CONFLICT) => self.jobs.forget(job),
            _ => self.jobs.end(known_id(&self.jobs, in_flight), State::Failed, error),
        }
        if done(in_flight, "dead-lettered", in_flight.source.dead_letter(&in_flight.message, &reason).await) {
            self.forget_failed(in_flight).await;
        }
    }
}

pub(super) fn failed_state(error: Option<&Value>) -> State {
    let cancelled = error.is_some_and(|error| error["code"] == JobError::Cancelled.code());
    if cancelled { State::Cancelled } else { State::Failed }
}

/// The id by which this node knows the job of a message; empty where it knows another request by that id.
pub(super) fn known_id<'a>(jobs: &Jobs, in_flight: &'a InFlight) -> &'a str {
    match &in_flight.job {
        Ok(job) if jobs.knows(job) => job.id.as_str(),
        _ => "",
    }
}

async fn requeue_known(jobs: &Jobs, in_flight: &InFlight) {
    jobs.requeue(known_id(jobs, in_flight), None);
    requeue(in_flight).await;
}

/// Hands a message back that was not tried.
pub async fn requeue(in_flight: &InFlight) {
    let putting = async {
        in_flight.release().await;
        done(in_flight, "released", in_flight.source.release(&in_flight.message).await);
    };
    putting.instrument(in_flight.span.clone()).await;
}

/// What the queue said; whatever it was, the message is safe: it comes back, and is replayed for free. Whether it did as it was told.
pub(super) fn done(in_flight: &InFlight, what: &str, result: Result<(), SourceError>) -> bool {
    let is_done = result.is_ok();
    match result {
        Ok(()) => tracing::debug!(message_id = in_flight.message.id, what, "a message was settled"),
        Err(error) => tracing::warn!(message_id = in_flight.message.id, what, %error, "a message was not settled"),
    }
    is_done
}
