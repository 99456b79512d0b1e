//! What becomes of messages once their invocation has ended: told, acknowledged, put back or dead-lettered.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Assignment;
use super::held::Held;
use super::verdict::{Outcome, Report, Verdict, verdicts};
use crate::host::answer::{Answer, reply_value};
use crate::host::backoff::{Backoff, pause};
use crate::host::desk::{Direct, Ending};
use crate::host::event;
use crate::host::jobs::{Jobs, State};
use crate::host::source::SourceError;
use crate::host::supervisor::invoke::Ended;
use crate::host::teller::Teller;
use crate::job::outcome::JobError;
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
                    for (held, verdict) in held.iter().zip(verdicts(&held, &ended)) {
                        settler.apply(held, verdict).await;
                    }
                }
                Assignment::Direct(direct) => settler.answer(direct, ended).await,
            }
        });
    }

    /// A job that somebody cancelled before it was started.
    pub fn cancelled(&self, held: Held) {
        let settler = self.clone();
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
        let last = held.message.attempt >= self.retries.max_attempts;
        match verdict {
            Verdict::Settled(report) => match self.teller.deliver(&report.notices).await {
                Ok(()) => {
                    self.jobs.end(held.job_id(), state(&report), report.error);
                    done(held, "acknowledged", held.source.ack(&held.message).await);
                }
                Err(undelivered) => self.try_again(held, &undelivered).await,
            },
            Verdict::Failed { error, report } if last => self.give_up(held, &error, report).await,
            Verdict::Failed { error, .. } => self.try_again(held, &error).await,
            Verdict::Untried => put_back_known(&self.jobs, held).await,
        }
    }

    async fn try_again(&self, held: &Held, error: &JobError) {
        let Retries { first_pause, longest_pause, .. } = self.retries;
        let delay = pause(first_pause, longest_pause, held.message.attempt, rand::random());
        tracing::warn!(
            job_id = held.job_id(),
            source = held.source.name(),
            attempt = held.message.attempt,
            code = error.code(),
            %error,
            delay_ms = delay.as_millis() as u64,
            "a job is tried again"
        );
        self.jobs.put_back(held.job_id(), Some(error_body(error)));
        done(held, "put back", held.source.retry(&held.message, delay).await);
    }

    /// The last attempt failed: the caller is told, then the message is kept where failed ones are. A job that died over and
    /// over is not started again only because its caller cannot be told now.
    async fn give_up(&self, held: &Held, error: &JobError, report: Option<Report>) {
        let Retries { first_pause, longest_pause, .. } = self.retries;
        let mut backoff = Backoff::new(first_pause, longest_pause);
        loop {
            let told = match &report {
                Some(report) => self.teller.deliver(&report.notices).await.map(|()| State::Failed),
                None => self.teller.ended(held, error).await,
            };
            match told {
                Ok(State::Complete) => {
                    self.jobs.end(held.job_id(), State::Complete, None);
                    return done(held, "acknowledged", held.source.ack(&held.message).await);
                }
                Ok(_) => break,
                Err(undelivered) => {
                    tracing::warn!(job_id = held.job_id(), error = %undelivered, "a failure could not be told yet");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = self.hurry.cancelled() => return put_back_known(&self.jobs, held).await,
            }
        }
        tracing::error!(job_id = held.job_id(), source = held.source.name(), attempt = held.message.attempt, %error, "a job failed for good");
        self.jobs.end(held.job_id(), State::Failed, Some(error_body(error)));
        done(held, "dead-lettered", held.source.dead_letter(&held.message, &error.to_string()).await);
    }

    async fn answer(&self, direct: Direct, ended: Ended) {
        let id = direct.job.id.as_str();
        let (ending, notices, state) = match ended {
            Ended::Answered(Answer::Reply { body, http_stream }) => {
                let reply = reply_value(&body, http_stream);
                let notices = reply["jobs"][0]["notices"].as_array().cloned().unwrap_or_default();
                let state = if reply["statusCode"] == 200 { State::Complete } else { State::Failed };
                (Ending::Answer(reply), notices, state)
            }
            Ended::Answered(Answer::Error(error)) => (Ending::Crashed(error.to_string()), Vec::new(), State::Failed),
            Ended::Died(cause) => (Ending::Crashed(cause.to_string()), Vec::new(), State::Failed),
            Ended::Untried => (Ending::Drained, Vec::new(), State::Failed),
        };
        self.jobs.end(id, state, None);
        // A caller that is gone hears of it by the notice, if at all.
        let _ = direct.answer.send(ending);
        if let Err(undelivered) = self.teller.deliver(&notices).await {
            tracing::warn!(job_id = id, error = %undelivered, "a notice was not delivered");
        }
    }
}

fn state(report: &Report) -> State {
    match report.outcome {
        Outcome::Complete => State::Complete,
        _ if report.error.as_ref().is_some_and(|error| error["code"] == JobError::Cancelled.code()) => State::Cancelled,
        _ => State::Failed,
    }
}

fn error_body(error: &JobError) -> Value {
    crate::events::error_body(error)
}

async fn put_back_known(jobs: &Jobs, held: &Held) {
    jobs.put_back(held.job_id(), None);
    put_back(held).await;
}

/// Hands a message back that was not tried.
pub async fn put_back(held: &Held) {
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
