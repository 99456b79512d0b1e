//! One event in, one reply out.

pub mod lambda;

use serde_json::Value;

use crate::events::auth::Auth;
use crate::events::http::{Exchange, Response, Route};
use crate::events::{Delivery, Event, EventError, Settlement, sqs};
use crate::job::outcome::{JobError, Outcome, Remedy};
use crate::job::request::{Defaults, Refusal};
use crate::job::{Job, JobId};
use crate::workflow::Workflow;
use crate::workflow::control::Control;

/// The function itself, whoever calls it. It takes one job at a time.
pub struct Handler {
    pub workflow: Workflow,
    pub defaults: Defaults,
    pub node_id: String,
    pub auth: Auth,
    /// After this many deliveries of a message its caller is told that the job failed.
    pub max_attempts: u32,
}

/// Why an invocation as a whole failed; the source of the event brings all of it back.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    #[error(transparent)]
    Event(#[from] EventError),
    /// RabbitMQ batches have no partial failure.
    #[error("{failed} of {all} messages are to be delivered again: {reasons}")]
    Batch { failed: usize, all: usize, reasons: String },
}

impl HandlerError {
    /// The error type that the Runtime API is told.
    #[must_use]
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::Event(_) => "Atelier.UnknownEvent",
            Self::Batch { .. } => "Atelier.Retry",
        }
    }
}

impl Handler {
    /// Takes one event from arrival to reply.
    ///
    /// # Errors
    /// [`HandlerError`] when the source has no other way to learn that something is to be brought back.
    pub async fn handle(&mut self, payload: Value, control: &Control) -> Result<Value, HandlerError> {
        match Event::parse(payload)? {
            Event::Sqs(batch) => {
                let settled = self.settle(batch.deliveries, control).await;
                let settled: Vec<_> = settled.into_iter().map(|(delivery, result)| (delivery, settlement(&result))).collect();
                Ok(sqs::reply(&settled))
            }
            Event::RabbitMq(batch) => {
                let settled = self.settle(batch.deliveries, control).await;
                let all = settled.len();
                let reasons: Vec<String> =
                    settled.iter().filter_map(|(_, result)| Some(result.as_ref().err()?.to_string())).collect();
                if reasons.is_empty() {
                    return Ok(Value::Null);
                }
                Err(HandlerError::Batch { failed: reasons.len(), all, reasons: reasons.join("; ") })
            }
            Event::Http(exchange) => {
                let response = self.respond(&exchange, control).await;
                Ok(exchange.reply(&response))
            }
        }
    }

    /// Settles the messages of a batch one after the other; an error means that the message is to be brought back.
    async fn settle(&mut self, deliveries: Vec<Delivery>, control: &Control) -> Vec<(Delivery, Result<(), JobError>)> {
        let mut settled: Vec<(Delivery, Result<(), JobError>)> = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            let earlier_failed =
                |group: &String| settled.iter().any(|(before, result)| before.group.as_ref() == Some(group) && result.is_err());
            let result = if delivery.group.as_ref().is_some_and(earlier_failed) {
                Err(JobError::Internal { problem: "an earlier message of its group is to be settled first".into() })
            } else if control.is_shutting_down() {
                Err(JobError::ShuttingDown)
            } else {
                self.deliver(&delivery, control).await
            };
            settled.push((delivery, result));
        }
        settled
    }

    /// Runs one message; an error means that it is to be brought back.
    async fn deliver(&mut self, delivery: &Delivery, control: &Control) -> Result<(), JobError> {
        let (job_id, callback, error) = match Job::from_json(&delivery.body, &self.defaults) {
            Ok(job) => match self.workflow.run(&job, control).await {
                Ok(_) => return Ok(()),
                Err(error) => (Some(job.id), job.callback, error),
            },
            Err(Refusal { job_id, callback, error, .. }) => (job_id, callback, error),
        };
        let last = delivery.attempt >= self.max_attempts;
        tell_log(job_id.as_ref().map_or("", |id| id.as_str()), &error, delivery, last);
        // Only the notice is missing: the pictures are stored, and the caller must not be told that the job failed.
        if matches!(error, JobError::Notice { .. }) {
            return Err(error);
        }
        if error.remedy() == Remedy::GiveUp {
            return self.workflow.tell_failed(job_id.as_ref(), callback.as_ref(), &error, delivery.attempt).await;
        }
        if last {
            self.workflow.tell_failed(job_id.as_ref(), callback.as_ref(), &error, delivery.attempt).await?;
        }
        Err(error)
    }

    async fn respond(&mut self, exchange: &Exchange, control: &Control) -> Response {
        let body = match exchange.route() {
            Ok(Route::Health) => return Response::health(&self.node_id),
            Ok(Route::Generate(body)) => body,
            Err(response) => return response,
        };
        if let Err(response) = exchange.authorize(&self.auth) {
            return response;
        }
        let job = match Job::from_json(&body, &self.defaults) {
            Ok(job) => job,
            Err(Refusal { job_id, error, .. }) => {
                return Response::failed(job_id.as_ref().map(JobId::as_str), &error);
            }
        };
        let result = match self.workflow.run(&job, control).await {
            Ok(outcome) => self.describe(&job, outcome).await,
            Err(error) => Err(error),
        };
        let error = match result {
            Ok(response) => return response,
            Err(error) => error,
        };
        tracing::warn!(job_id = %job.id, code = error.code(), error = %error, "job failed");
        if error.remedy() == Remedy::GiveUp
            && let Err(undelivered) = self.workflow.tell_failed(Some(&job.id), job.callback.as_ref(), &error, 1).await
        {
            // The caller hears of the failure in this very response.
            tracing::warn!(job_id = %job.id, error = %undelivered, "failed notice not delivered");
        }
        Response::failed(Some(job.id.as_str()), &error)
    }

    async fn describe(&self, job: &Job, outcome: Outcome) -> Result<Response, JobError> {
        let body = self.workflow.complete_body(job, &outcome.record).await?;
        Ok(Response::done(&outcome, body))
    }
}

fn settlement(result: &Result<(), JobError>) -> Settlement {
    if result.is_ok() { Settlement::Settled } else { Settlement::Retry }
}

fn tell_log(job_id: &str, error: &JobError, delivery: &Delivery, last: bool) {
    let retry = error.remedy() == Remedy::Retry;
    tracing::warn!(
        job_id,
        message_id = delivery.message_id,
        attempt = delivery.attempt,
        code = error.code(),
        error = %error,
        retry,
        last_attempt = last,
        "job failed"
    );
}
