//! What becomes of messages once their invocation has ended: reported, acknowledged, put back or dead-lettered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::disposition::{Disposition, dispositions};
use super::{Assignment, Dispatcher};
use crate::backoff::{Backoff, pause};
use crate::fault_point::fault_point;
use crate::host::answer::{Answer, Ended, reply_value};
use crate::host::event;
use crate::host::in_flight::InFlight;
use crate::host::job_service::{Direct, Ending};
use crate::host::jobs::{Jobs, State};
use crate::host::notification_sender::NotificationSender;
use crate::host::source::SourceError;
use crate::job::measured::Measured;
use crate::job::outcome::{JobError, Problem};
use crate::metrics::Metrics;
use crate::protocol::reply::{self, JobOutcome, JobReport};
use crate::setting::Secret;

/// [`JobError::code`] of a request under another job's id.
const CONFLICT: &str = "conflict";

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
                        acknowledger.apply(in_flight, disposition).instrument(in_flight.span.clone())
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
        let notifying = async move {
            match acknowledger.notification_sender.ended(&in_flight, &JobError::Cancelled).await {
                Ok(State::Complete) => {
                    acknowledger.count(&in_flight, JobOutcome::Complete.as_str(), None);
                    acknowledger.over(&in_flight, State::Complete, None).await;
                }
                Ok(_) => {
                    acknowledger.count(&in_flight, "cancelled", None);
                    acknowledger.over(&in_flight, State::Cancelled, None).await;
                }
                Err(undelivered) => acknowledger.try_again(&in_flight, &undelivered).await,
            }
        };
        self.under_way.spawn(notifying.instrument(span));
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
        if matches!(outcome, JobOutcome::Failed | JobOutcome::DeadLetter) {
            self.jobs.ending(known_id(&self.jobs, in_flight));
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
            JobOutcome::DeadLetter => self.dead_letter(in_flight, error).await,
        }
    }

    fn count(&self, in_flight: &InFlight, outcome: &str, measured: Option<&Measured>) {
        self.metrics.job(in_flight.source.name(), outcome, measured);
    }

    async fn over(&self, in_flight: &InFlight, state: State, error: Option<Value>) {
        self.jobs.end(known_id(&self.jobs, in_flight), state, error);
        self.ack(in_flight).await;
        fault_point!("after-ack");
    }

    /// Until the queue has heard it: a message that comes back is reported again. Its heartbeat keeps it here meanwhile.
    async fn ack(&self, in_flight: &InFlight) {
        let Retries { initial_backoff, max_backoff, .. } = self.retries;
        let mut backoff = Backoff::new(initial_backoff, max_backoff);
        loop {
            let error = match in_flight.source.ack(&in_flight.message).await {
                Err(error) if !matches!(error, SourceError::Lost { .. }) => error,
                result => return done(in_flight, "acknowledged", result),
            };
            tracing::warn!(message_id = in_flight.message.id, %error, "a job that has ended could not be acknowledged yet");
            tokio::select! {
                () = tokio::time::sleep(backoff.next_pause()) => {}
                () = self.force_shutdown.cancelled() => return,
            }
        }
    }

    async fn try_again(&self, in_flight: &InFlight, error: &JobError) {
        tracing::warn!(code = error.code(), %error, "a job did not end");
        self.retry_later(in_flight, Some(json!(Problem::from(error)))).await;
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
            match self.notification_sender.ended(in_flight, error).await {
                Ok(State::Complete) => return self.over(in_flight, State::Complete, None).await,
                Ok(_) => return self.dead_letter(in_flight, Some(json!(Problem::from(error)))).await,
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

    async fn dead_letter(&self, in_flight: &InFlight, error: Option<Value>) {
        let reason = error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("it failed").to_owned();
        tracing::error!(error = reason, "a job failed for good");
        match &in_flight.job {
            // The id is another job's: nothing is known here of that one.
            Ok(job) if error.as_ref().is_some_and(|error| error["code"] == CONFLICT) => self.jobs.forget(job),
            _ => self.jobs.end(known_id(&self.jobs, in_flight), State::Failed, error),
        }
        done(in_flight, "dead-lettered", in_flight.source.dead_letter(&in_flight.message, &reason).await);
    }

    async fn answer(&self, direct: Direct, ended: Ended) {
        let id = direct.job.id.as_str();
        let (ending, report) = match ended {
            Ended::Answered(Answer::Reply { body, http_stream }) => {
                let reply = reply_value(&body, http_stream);
                let report = reply::decode(&reply).unwrap_or_else(|unreadable| {
                    tracing::error!(error = %unreadable, "a reply was not understood");
                    Vec::new()
                });
                let report = report.into_iter().next();
                (Ending::Answer(reply), report)
            }
            Ended::Answered(Answer::Error(error)) => (Ending::Crashed(error.to_string()), None),
            Ended::Died(cause) => (Ending::Crashed(cause.to_string()), None),
            Ended::Untried => (Ending::Drained, None),
        };
        // A function that knows nothing of its host answers its caller itself.
        let answered = match &ending {
            Ending::Answer(reply) if report.is_none() && !reply.is_null() && !reply::is_ours(reply) => {
                reply["statusCode"].as_u64().is_none_or(|status| status < 400)
            }
            _ => false,
        };
        let unreported = if answered { (State::Complete, JobOutcome::Complete) } else { (State::Failed, JobOutcome::Failed) };
        let outcome = report.as_ref().map_or(unreported.1, |report| report.outcome).as_str();
        self.metrics.job("infer", outcome, report.as_ref().and_then(|report| report.measured.as_ref()));
        let (state, error, notifications) = match report {
            Some(JobReport { outcome: JobOutcome::Complete, notifications, .. }) => (State::Complete, None, notifications),
            Some(JobReport { error, notifications, .. }) => {
                let error = error.map(|error| json!(error));
                (failed_state(error.as_ref()), error, notifications)
            }
            None => (unreported.0, None, Vec::new()),
        };
        self.jobs.end(id, state, error);
        // A caller that is gone hears of it by the notification, if at all.
        let _ = direct.answer.send(ending);
        if let Err(undelivered) = self.notification_sender.deliver(&notifications).await {
            tracing::warn!(error = %undelivered, "a notification was not delivered");
        }
    }
}

fn failed_state(error: Option<&Value>) -> State {
    let cancelled = error.is_some_and(|error| error["code"] == JobError::Cancelled.code());
    if cancelled { State::Cancelled } else { State::Failed }
}

/// The id by which this node knows the job of a message; empty where it knows another request by that id.
fn known_id<'a>(jobs: &Jobs, in_flight: &'a InFlight) -> &'a str {
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

/// Puts a message off whose job runs already.
async fn defer(in_flight: &InFlight, delay: Duration) {
    let putting = async {
        in_flight.release().await;
        done(in_flight, "deferred", in_flight.source.defer(&in_flight.message, delay).await);
    };
    putting.instrument(in_flight.span.clone()).await;
}

/// Puts off what keeps other jobs from an idle handler, for as long as the host lives.
pub async fn defer_blocked(dispatcher: Arc<Dispatcher>, delay: Duration) {
    loop {
        for in_flight in dispatcher.blocked().await {
            defer(&in_flight, delay).await;
        }
    }
}

/// What the queue said; whatever it was, the message is safe: it comes back, and is replayed for free.
fn done(in_flight: &InFlight, what: &str, result: Result<(), SourceError>) {
    match result {
        Ok(()) => tracing::debug!(message_id = in_flight.message.id, what, "a message was settled"),
        Err(error) => tracing::warn!(message_id = in_flight.message.id, what, %error, "a message was not settled"),
    }
}
