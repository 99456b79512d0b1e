//! What becomes of messages once their invocation has ended: reported, acknowledged, put back or dead-lettered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::Assignment;
use super::disposition::{Disposition, dispositions};
use crate::backoff::{Backoff, pause};
use crate::clock::later;
use crate::fault_point::fault_point;
use crate::host::answer::Ended;
use crate::host::ended::{End, EndedJob};
use crate::host::event;
use crate::host::in_flight::InFlight;
use crate::host::jobs::{Jobs, State};
use crate::host::outbox::{Outbox, Sent};
use crate::host::source::{Message, SourceError};
use crate::host::store_health::StoreHealth;
use crate::job::measured::Measured;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Problem, RetryPolicy};
use crate::metrics::Metrics;
use crate::protocol::deferral::DeferReason;
use crate::protocol::reply::{JobOutcome, JobReport};
use crate::setting::Secret;

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
    pub outbox: Outbox,
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
                let messages: Vec<_> = in_flight.iter().map(InFlight::traced).collect();
                in_flight.first().map_or(Value::Null, |first| event::batch(&first.source.shape(), &messages))
            }
            Assignment::Direct(direct) => {
                event::http_generate(&direct.body, self.token.as_ref().map(Secret::reveal), direct.trace())
            }
        }
    }

    /// Settles an assignment; returns at once.
    pub fn acknowledge(&self, assignment: Assignment, ended: Ended) {
        let acknowledger = self.clone();
        self.under_way.spawn(async move {
            match assignment {
                Assignment::Messages(in_flight) => {
                    let dispositions = dispositions(&in_flight, &ended);
                    // A reply can be large, and a notification can wait for long.
                    drop(ended);
                    for (in_flight, disposition) in in_flight.into_iter().zip(dispositions) {
                        let each = acknowledger.clone();
                        let span = in_flight.span.clone();
                        let applying =
                            async move { Box::pin(each.guarded(&in_flight, each.apply(&in_flight, disposition))).await };
                        acknowledger.under_way.spawn(applying.instrument(span));
                    }
                }
                Assignment::Direct(direct) => {
                    let span = direct.span.clone();
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
        let cancelling =
            async move { Box::pin(acknowledger.guarded(&in_flight, acknowledger.conclude_cancelled(&in_flight))).await };
        self.under_way.spawn(cancelling.instrument(span));
    }

    async fn conclude_cancelled(&self, in_flight: &InFlight) {
        let ended = EndedJob::failed(End::Failed, in_flight.message.attempt, Problem::from(&JobError::Cancelled));
        if let Some(end) = self.conclude(in_flight, ended, None).await {
            let outcome = if end == End::Complete { JobOutcome::Complete.as_str() } else { "cancelled" };
            self.count(in_flight, outcome, None);
        }
    }

    /// Notifies of a job that has ended: no handler is needed. `written`: its notifications, where they are known.
    pub fn notify(&self, in_flight: InFlight, ended: EndedJob, written: Option<Vec<Notification>>) {
        let acknowledger = self.clone();
        let span = in_flight.span.clone();
        let notifying = async move {
            let concluding = async {
                acknowledger.conclude(&in_flight, ended, written).await;
            };
            Box::pin(acknowledger.guarded(&in_flight, concluding)).await;
        };
        self.under_way.spawn(notifying.instrument(span));
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
                self.jobs.died(known_id(&self.jobs, in_flight));
                self.count(in_flight, JobOutcome::Retry.as_str(), None);
                self.try_again(in_flight, &error).await;
            }
            Disposition::Failed(error) => {
                self.count(in_flight, JobOutcome::DeadLetter.as_str(), None);
                // A job that died over and over is not started again only because its caller cannot be notified now.
                let id = known_id(&self.jobs, in_flight);
                self.jobs.died(id);
                let died_storing = self.jobs.job_status(id).and_then(|known| known.died_storing);
                let ended = EndedJob {
                    // A request that has left is not called back by the death of its sender.
                    record_until: died_storing.map(|died| later(died, self.outbox.store().longest_request())),
                    ..EndedJob::failed(End::DeadLetter, in_flight.message.attempt, Problem::from(&error))
                };
                self.conclude(in_flight, ended, None).await;
            }
            Disposition::Reported(report) => self.finalize(in_flight, report).await,
        }
    }

    /// Notifies the caller, then settles the message.
    async fn finalize(&self, in_flight: &InFlight, report: JobReport) {
        let is_refused = report.is_refused();
        let has_receiver = report.job_id.is_some() && !report.notifications.is_empty();
        let JobReport { outcome, error, notifications, measured, .. } = report;
        let had_generated = in_flight.message.deferral.is_some_and(|deferral| deferral.reason == DeferReason::ResultHeld);
        let has_generated = measured.as_ref().is_some_and(|measured| measured.denoising_steps > 0);
        if had_generated && has_generated {
            self.metrics.generated_again();
        }
        let is_kept = is_refused && in_flight.is_kept_if_refused(has_receiver);
        let outcome = if is_kept { JobOutcome::DeadLetter } else { outcome };
        if is_refused {
            self.metrics.refused(in_flight.source.name(), outcome.as_str());
        }
        self.count(in_flight, outcome.as_str(), measured.as_ref());
        let attempt = in_flight.message.attempt;
        let said = error.as_ref().map(|error| json!(error));
        let problem = || error.clone().unwrap_or_else(|| Problem::from(&JobError::Internal { problem: "it failed".into() }));
        let ended = match outcome {
            JobOutcome::Retry => return self.retry_later(in_flight, said).await,
            JobOutcome::StoreUnavailable => {
                let is_held = has_generated || had_generated;
                let reason = if is_held { DeferReason::ResultHeld } else { DeferReason::StoreUnavailable };
                return self.wait_for_store(in_flight, reason, said).await;
            }
            JobOutcome::ModerationUnavailable => {
                return self.defer(in_flight, DeferReason::ModerationUnavailable, said).await;
            }
            JobOutcome::StepUnavailable => return self.defer(in_flight, DeferReason::StepUnavailable, said).await,
            JobOutcome::Complete => EndedJob::complete(attempt),
            JobOutcome::Failed => EndedJob::failed(End::Failed, attempt, problem()),
            JobOutcome::DeadLetter => EndedJob::failed(End::DeadLetter, attempt, problem()),
        };
        self.conclude(in_flight, ended, Some(notifications)).await;
    }

    /// Brings a job that has ended to its caller's knowledge, however long that takes, then settles its message. `written`: its
    /// notifications, where a handler has written them. The end that was reported; none where the message waits elsewhere.
    async fn conclude(&self, in_flight: &InFlight, ended: EndedJob, written: Option<Vec<Notification>>) -> Option<End> {
        let id = known_id(&self.jobs, in_flight);
        match ended.end {
            End::Complete => self.jobs.end(id, State::Complete, None),
            End::Failed | End::DeadLetter => self.jobs.ending(id),
        }
        fault_point!("before-tell");
        match self.outbox.send(in_flight, ended, written).await {
            Sent::All(ended) => {
                fault_point!("after-tell");
                self.close(in_flight, &ended).await;
                Some(ended.end)
            }
            Sent::GivenUp(ended, problem) => {
                self.keep_undelivered(in_flight, &ended, &problem).await;
                None
            }
            Sent::Deferred(ended) => {
                self.metrics.deferred(in_flight.source.name(), DeferReason::NotificationUndelivered.as_str());
                if ended.end != End::Complete {
                    self.jobs.requeue(id, ended.problem.map(|problem| json!(problem)));
                }
                None
            }
            Sent::NoRecord => {
                tracing::warn!("a job that was complete has no record any more; it is run again");
                self.jobs.requeue(id, None);
                in_flight.release().await;
                let message = Message { ended: None, ..in_flight.message.clone() };
                done(
                    in_flight,
                    "deferred",
                    in_flight.source.defer(&message, Duration::ZERO, DeferReason::NotificationUndelivered).await,
                );
                None
            }
        }
    }

    async fn close(&self, in_flight: &InFlight, ended: &EndedJob) {
        let error = ended.problem.as_ref().map(|problem| json!(problem));
        let is_settled = match ended.end {
            End::Complete => self.over(in_flight, State::Complete, None).await,
            End::Failed => self.over(in_flight, failed_state(error.as_ref()), error).await,
            End::DeadLetter => self.dead_letter(in_flight, error).await,
        };
        if is_settled {
            self.settle_note(in_flight, ended).await;
        }
    }

    /// Keeps the message of a job whose caller could not be notified for too long. What is sent again from there is notified again.
    async fn keep_undelivered(&self, in_flight: &InFlight, ended: &EndedJob, problem: &str) {
        let undelivered = JobError::Notification { problem: String::new(), cause: None };
        let reason = format!("{}: {problem}", undelivered.code());
        tracing::error!(
            error = reason,
            rounds = ended.rounds,
            "a job's caller could not be notified; its message is dead-lettered"
        );
        self.metrics.gave_up(in_flight.source.name());
        let error = ended.problem.as_ref().map(|problem| json!(problem));
        let state = if ended.end == End::Complete { State::Complete } else { failed_state(error.as_ref()) };
        self.jobs.end(known_id(&self.jobs, in_flight), state, error);
        let message = Message { ended: Some(ended.anew()), ..in_flight.message.clone() };
        if self.bury(in_flight, &message, &reason).await {
            self.settle_note(in_flight, ended).await;
        }
    }

    pub(super) fn count(&self, in_flight: &InFlight, outcome: &str, measured: Option<&Measured>) {
        self.metrics.job(in_flight.source.name(), outcome, measured);
    }

    /// Whether the queue has heard it.
    async fn over(&self, in_flight: &InFlight, state: State, error: Option<Value>) -> bool {
        self.jobs.end(known_id(&self.jobs, in_flight), state, error);
        let is_acknowledged = self.ack(in_flight).await;
        fault_point!("after-ack");
        is_acknowledged
    }

    /// Until the queue has heard it: a message that comes back is reported again. Its heartbeat keeps it here meanwhile. Whether it has.
    async fn ack(&self, in_flight: &InFlight) -> bool {
        self.repeat(in_flight, "acknowledged", || in_flight.source.ack(&in_flight.message)).await
    }

    async fn bury(&self, in_flight: &InFlight, message: &Message, reason: &str) -> bool {
        self.repeat(in_flight, "dead-lettered", || in_flight.source.dead_letter(message, reason)).await
    }

    async fn repeat<F: Future<Output = Result<(), SourceError>>>(
        &self,
        in_flight: &InFlight,
        what: &str,
        attempt: impl Fn() -> F,
    ) -> bool {
        let Retries { initial_backoff, max_backoff, .. } = self.retries;
        let mut backoff = Backoff::new(initial_backoff, max_backoff);
        loop {
            let error = match attempt().await {
                // A missing permission may be given, a queue made: else the job would be reported whenever its message comes back.
                Err(error @ (SourceError::Unavailable { .. } | SourceError::Refused { .. })) => error,
                result => return done(in_flight, what, result),
            };
            tracing::warn!(message_id = in_flight.message.id, what, %error, "a job that has ended could not be acknowledged yet");
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

    async fn dead_letter(&self, in_flight: &InFlight, error: Option<Value>) -> bool {
        let reason = error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("it failed").to_owned();
        tracing::error!(error = reason, "a job failed for good");
        let message = Message { ended: None, ..in_flight.message.clone() };
        match &in_flight.job {
            // The id is another job's: nothing is known here of that one.
            Ok(job) if is_conflict(error.as_ref()) => self.jobs.forget(job),
            _ => self.jobs.end(known_id(&self.jobs, in_flight), State::Failed, error),
        }
        self.bury(in_flight, &message, &reason).await
    }
}

fn is_conflict(error: Option<&Value>) -> bool {
    error.and_then(|error| Problem::deserialize(error).ok()).is_some_and(|problem| problem.is_conflict())
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
