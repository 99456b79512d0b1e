//! What becomes of messages once their invocation has ended: told, acknowledged, put back or dead-lettered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Assignment;
use super::held::Held;
use super::verdict::{Verdict, settled, verdicts};
use crate::events::Problem;
use crate::events::settled::{Settled, Settlement};
use crate::host::answer::{Answer, reply_value};
use crate::host::backoff::{Backoff, pause};
use crate::host::desk::{Direct, Ending};
use crate::host::event;
use crate::host::jobs::{Jobs, State};
use crate::host::source::SourceError;
use crate::host::supervisor::invoke::Ended;
use crate::host::teller::Teller;
use crate::job::measured::Measured;
use crate::job::outcome::JobError;
use crate::metrics::Metrics;
use crate::setting::Secret;

/// How often and how soon a job is tried again.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// After this many deliveries the caller is told `failed`, and the message is dead-lettered.
    pub max_attempts: u32,
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

/// Settles messages in the background, so that the handler takes the next one meanwhile; clones share what is under way.
#[derive(Clone)]
pub struct Settler {
    pub jobs: Arc<Jobs>,
    pub teller: Teller,
    pub retries: Retries,
    /// What an HTTP event of the host presents to the handler.
    pub token: Option<Secret>,
    pub metrics: Metrics,
    pub under_way: TaskTracker,
    /// The host ends: whoever waits for a better time gives up.
    pub hurry: CancellationToken,
}

impl Settler {
    /// The event of an assignment, in AWS's shape.
    #[must_use]
    pub fn event(&self, assignment: &Assignment) -> Value {
        match assignment {
            Assignment::Messages(held) => {
                let messages: Vec<_> = held.iter().map(|held| &held.message).collect();
                held.first().map_or(Value::Null, |first| event::batch(&first.source.shape(), &messages))
            }
            Assignment::Direct(direct) => event::http_generate(&direct.body, self.token.as_ref().map(Secret::reveal)),
        }
    }

    /// By this the handler knows that it runs under a host, which delivers its notices.
    #[must_use]
    pub fn client_context(&self) -> String {
        json!({ "custom": { "atelier": "host" } }).to_string()
    }

    /// Settles an assignment; returns at once.
    pub fn settle(&self, assignment: Assignment, ended: Ended) {
        let settler = self.clone();
        self.under_way.spawn(async move {
            match assignment {
                Assignment::Messages(held) => {
                    let applied = held.iter().zip(verdicts(&held, &ended));
                    join_all(applied.map(|(held, verdict)| settler.apply(held, verdict))).await;
                }
                Assignment::Direct(direct) => settler.answer(direct, ended).await,
            }
        });
    }

    /// A job that somebody cancelled before it was started.
    pub fn cancelled(&self, held: Held) {
        let settler = self.clone();
        self.metrics.job(held.source.name(), "cancelled", None);
        self.under_way.spawn(async move {
            match settler.teller.failed(&held, &JobError::Cancelled).await {
                Ok(()) => {
                    settler.jobs.end(held.job_id(), State::Cancelled, None);
                    done(&held, "acknowledged", held.source.ack(&held.message).await);
                }
                Err(undelivered) => settler.try_again(&held, &undelivered).await,
            }
        });
    }

    async fn apply(&self, held: &Held, verdict: Verdict) {
        match verdict {
            Verdict::Untried => {
                self.count(held, "untried", None);
                put_back_known(&self.jobs, held).await;
            }
            Verdict::Taken => {
                self.count(held, Settlement::Complete.word(), None);
                self.over(held, State::Complete, None).await;
            }
            Verdict::Failed(error) if held.message.attempt < self.retries.max_attempts => {
                self.count(held, Settlement::Retry.word(), None);
                self.try_again(held, &error).await;
            }
            Verdict::Failed(error) => {
                self.count(held, Settlement::DeadLetter.word(), None);
                self.give_up(held, &error).await;
            }
            Verdict::Told(told) => self.conclude(held, told).await,
        }
    }

    /// Tells the caller, then the queue.
    async fn conclude(&self, held: &Held, told: Settled) {
        let Settled { outcome, error, notices, measured, .. } = told;
        let delivered = tokio::select! {
            delivered = self.teller.deliver_of(held, &notices) => delivered,
            // The next host sends them again, with the same ids.
            () = self.hurry.cancelled() => {
                self.count(held, "untried", measured.as_ref());
                return put_back_known(&self.jobs, held).await;
            }
        };
        let delivered = match delivered {
            Ok(delivered) => delivered,
            Err(undelivered) => {
                self.count(held, Settlement::Retry.word(), measured.as_ref());
                return self.try_again(held, &undelivered).await;
            }
        };
        self.count(held, outcome.word(), measured.as_ref());
        let error = error.map(|error| json!(error));
        match outcome {
            Settlement::Complete if !delivered => self.over(held, State::Failed, error).await,
            Settlement::Complete => self.over(held, State::Complete, None).await,
            Settlement::Failed => self.over(held, failed_state(error.as_ref()), error).await,
            Settlement::Retry => self.put_off(held, error).await,
            Settlement::DeadLetter => self.dead_letter(held, error).await,
        }
    }

    fn count(&self, held: &Held, outcome: &str, measured: Option<&Measured>) {
        self.metrics.job(held.source.name(), outcome, measured);
    }

    async fn over(&self, held: &Held, state: State, error: Option<Value>) {
        self.jobs.end(held.job_id(), state, error);
        done(held, "acknowledged", held.source.ack(&held.message).await);
    }

    async fn try_again(&self, held: &Held, error: &JobError) {
        tracing::warn!(job_id = held.job_id(), code = error.code(), %error, "a job did not end");
        self.put_off(held, Some(json!(Problem::from(error)))).await;
    }

    async fn put_off(&self, held: &Held, error: Option<Value>) {
        let Retries { first_pause, longest_pause, .. } = self.retries;
        let delay = pause(first_pause, longest_pause, held.message.attempt, rand::random());
        tracing::warn!(
            job_id = held.job_id(),
            source = held.source.name(),
            attempt = held.message.attempt,
            code = error.as_ref().and_then(|error| error["code"].as_str()),
            delay_ms = delay.as_millis() as u64,
            "a job is tried again"
        );
        self.jobs.put_back(held.job_id(), error);
        held.let_go().await;
        done(held, "put back", held.source.retry(&held.message, delay).await);
    }

    /// The last attempt failed and the handler could not tell. A job that died over and over is not started again only
    /// because its caller cannot be told now.
    async fn give_up(&self, held: &Held, error: &JobError) {
        let Retries { first_pause, longest_pause, .. } = self.retries;
        let mut backoff = Backoff::new(first_pause, longest_pause);
        loop {
            match self.teller.ended(held, error).await {
                Ok(State::Complete) => return self.over(held, State::Complete, None).await,
                Ok(_) => return self.dead_letter(held, Some(json!(Problem::from(error)))).await,
                Err(undelivered) => {
                    tracing::warn!(job_id = held.job_id(), error = %undelivered, "a failure could not be told yet");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_pause()) => {}
                () = self.hurry.cancelled() => return put_back_known(&self.jobs, held).await,
            }
        }
    }

    async fn dead_letter(&self, held: &Held, error: Option<Value>) {
        let reason = error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("it failed").to_owned();
        tracing::error!(
            job_id = held.job_id(),
            source = held.source.name(),
            attempt = held.message.attempt,
            error = reason,
            "a job failed for good"
        );
        self.jobs.end(held.job_id(), State::Failed, error);
        done(held, "dead-lettered", held.source.dead_letter(&held.message, &reason).await);
    }

    async fn answer(&self, direct: Direct, ended: Ended) {
        let id = direct.job.id.as_str();
        let (ending, told) = match ended {
            Ended::Answered(Answer::Reply { body, http_stream }) => {
                let reply = reply_value(&body, http_stream);
                let told = settled(&reply).into_iter().next();
                (Ending::Answer(reply), told)
            }
            Ended::Answered(Answer::Error(error)) => (Ending::Crashed(error.to_string()), None),
            Ended::Died(cause) => (Ending::Crashed(cause.to_string()), None),
            Ended::Untried => (Ending::Drained, None),
        };
        let outcome = told.as_ref().map_or("failed", |told| told.outcome.word());
        self.metrics.job("infer", outcome, told.as_ref().and_then(|told| told.measured.as_ref()));
        let (state, error, notices) = match told {
            Some(Settled { outcome: Settlement::Complete, notices, .. }) => (State::Complete, None, notices),
            Some(Settled { error, notices, .. }) => {
                let error = error.map(|error| json!(error));
                (failed_state(error.as_ref()), error, notices)
            }
            None => (State::Failed, None, Vec::new()),
        };
        self.jobs.end(id, state, error);
        // A caller that is gone hears of it by the notice, if at all.
        let _ = direct.answer.send(ending);
        if let Err(undelivered) = self.teller.deliver(&notices).await {
            tracing::warn!(job_id = id, error = %undelivered, "a notice was not delivered");
        }
    }
}

fn failed_state(error: Option<&Value>) -> State {
    let cancelled = error.is_some_and(|error| error["code"] == JobError::Cancelled.code());
    if cancelled { State::Cancelled } else { State::Failed }
}

async fn put_back_known(jobs: &Jobs, held: &Held) {
    jobs.put_back(held.job_id(), None);
    put_back(held).await;
}

/// Hands a message back that was not tried.
pub async fn put_back(held: &Held) {
    held.let_go().await;
    done(held, "released", held.source.release(&held.message).await);
}

/// What the queue said; whatever it was, the message is safe: it comes back, and is replayed for free.
fn done(held: &Held, what: &str, result: Result<(), SourceError>) {
    let (job_id, source) = (held.job_id(), held.source.name());
    match result {
        Ok(()) => tracing::debug!(job_id, source, message_id = held.message.id, what, "a message was settled"),
        Err(error) => tracing::warn!(job_id, source, message_id = held.message.id, what, %error, "a message was not settled"),
    }
}
