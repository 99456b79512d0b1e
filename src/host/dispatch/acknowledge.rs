//! What becomes of messages once their invocation has ended: reported, acknowledged, put back or dead-lettered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::disposition::{Disposition, dispositions};
use super::{Assignment, Dispatcher};
use crate::backoff::{Backoff, pause};
use crate::fault_point::fault_point;
use crate::host::answer::{Answer, Ended, reply_value};
use crate::host::ended::{End, EndedJob};
use crate::host::event;
use crate::host::in_flight::InFlight;
use crate::host::job_service::{Direct, Ending};
use crate::host::jobs::{Jobs, State};
use crate::host::outbox::{Outbox, Sent};
use crate::host::source::{Message, SourceError};
use crate::job::measured::Measured;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Problem};
use crate::metrics::Metrics;
use crate::protocol::reply::{self, JobOutcome, JobReport};
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
                    let dispositions = dispositions(&in_flight, &ended);
                    // A reply can be large, and a notification can wait for long.
                    drop(ended);
                    for (in_flight, disposition) in in_flight.into_iter().zip(dispositions) {
                        let each = acknowledger.clone();
                        let span = in_flight.span.clone();
                        let applying = async move { each.apply(&in_flight, disposition).await };
                        acknowledger.under_way.spawn(applying.instrument(span));
                    }
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
        let concluding = async move {
            let ended = EndedJob::failed(End::Failed, in_flight.message.attempt, Problem::from(&JobError::Cancelled));
            if let Some(end) = acknowledger.conclude(&in_flight, ended, None).await {
                let outcome = if end == End::Complete { JobOutcome::Complete.as_str() } else { "cancelled" };
                acknowledger.count(&in_flight, outcome, None);
            }
        };
        self.under_way.spawn(concluding.instrument(span));
    }

    /// Takes out the messages whose jobs have ended: no handler is needed for those, and they are no jobs to wait for.
    pub async fn take_ended(&self, received: Vec<InFlight>) -> Vec<InFlight> {
        let looks = received.into_iter().map(async |in_flight| (self.outbox.ended(&in_flight).await, in_flight));
        let mut jobs = Vec::new();
        for (ended, in_flight) in join_all(looks).await {
            let Some(ended) = ended else {
                jobs.push(in_flight);
                continue;
            };
            let acknowledger = self.clone();
            let span = in_flight.span.clone();
            let concluding = async move { acknowledger.conclude(&in_flight, ended, None).await };
            self.under_way.spawn(concluding.instrument(span));
        }
        jobs
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
                // A job that died over and over is not started again only because its caller cannot be notified now.
                self.count(in_flight, JobOutcome::DeadLetter.as_str(), None);
                let ended = EndedJob::failed(End::DeadLetter, in_flight.message.attempt, Problem::from(&error));
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
        // No one hears of it, or all that was refused is to be kept.
        let is_kept = is_refused && (!has_receiver || in_flight.source.keeps_refused());
        let outcome = if is_kept { JobOutcome::DeadLetter } else { outcome };
        if is_refused {
            self.metrics.refused(in_flight.source.name(), outcome.as_str());
        }
        self.count(in_flight, outcome.as_str(), measured.as_ref());
        let attempt = in_flight.message.attempt;
        let problem = || error.clone().unwrap_or_else(|| Problem::from(&JobError::Internal { problem: "it failed".into() }));
        let ended = match outcome {
            JobOutcome::Retry => return self.retry_later(in_flight, error.map(|error| json!(error))).await,
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
                done(in_flight, "deferred", in_flight.source.defer(&message, Duration::ZERO).await);
                None
            }
        }
    }

    async fn close(&self, in_flight: &InFlight, ended: &EndedJob) {
        let error = ended.problem.as_ref().map(|problem| json!(problem));
        match ended.end {
            End::Complete => self.over(in_flight, State::Complete, None).await,
            End::Failed => self.over(in_flight, failed_state(error.as_ref()), error).await,
            End::DeadLetter => self.dead_letter(in_flight, error).await,
        }
    }

    /// Keeps the message of a job whose caller could not be notified for too long. What is sent again from there is notified again.
    async fn keep_undelivered(&self, in_flight: &InFlight, ended: &EndedJob, problem: &str) {
        let code = JobError::Notification { problem: String::new(), cause: None }.code();
        let reason = format!("{code}: {problem}");
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
        done(in_flight, "dead-lettered", in_flight.source.dead_letter(&message, &reason).await);
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

    async fn dead_letter(&self, in_flight: &InFlight, error: Option<Value>) {
        let reason = error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("it failed").to_owned();
        tracing::error!(error = reason, "a job failed for good");
        let message = Message { ended: None, ..in_flight.message.clone() };
        match &in_flight.job {
            // The id is another job's: nothing is known here of that one.
            Ok(job) if is_conflict(error.as_ref()) => self.jobs.forget(job),
            _ => self.jobs.end(known_id(&self.jobs, in_flight), State::Failed, error),
        }
        done(in_flight, "dead-lettered", in_flight.source.dead_letter(&message, &reason).await);
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
        self.outbox.send_unqueued(notifications).await;
    }
}

fn is_conflict(error: Option<&Value>) -> bool {
    error.and_then(|error| Problem::deserialize(error).ok()).is_some_and(|problem| problem.is_conflict())
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
