//! Jobs that come by HTTP through the platform: the answer is the outcome.

use tracing::Instrument as _;

use super::reports::{complete, entry, handed_back, job_outcome};
use super::{Handler, span};
use crate::events::Delivery;
use crate::events::http::{Exchange, Response, Route};
use crate::job::outcome::{JobError, Outcome};
use crate::job::request::Refusal;
use crate::job::{Job, JobId};
use crate::protocol::reply::{JobOutcome, JobReport};
use crate::workflow::Ended;
use crate::workflow::control::Control;

impl Handler {
    /// Answers a request; a job of it has the element that the host gets.
    pub(super) async fn respond(&self, exchange: &Exchange, control: &Control) -> (Response, Vec<JobReport>) {
        let body = match self.admit(exchange) {
            Ok(body) => body,
            Err(response) => return (response, Vec::new()),
        };
        // A request is delivered once.
        self.respond_to(&Delivery::once("http", exchange.trace(), body), control).await
    }

    pub(super) async fn respond_to(&self, delivery: &Delivery, control: &Control) -> (Response, Vec<JobReport>) {
        match Job::from_message(&delivery.body, delivery.trace, &self.defaults) {
            Ok(job) => {
                let span = span(Some(&job.id), delivery);
                self.answer(delivery, &job, control).instrument(span).await
            }
            // The caller hears of it in this very response, and in no notification.
            Err(Refusal { job_id, error, .. }) => {
                let response = Response::failed(job_id.as_ref().map(JobId::as_str), &error);
                (response, vec![entry("", job_id.as_ref(), JobOutcome::Failed, Some(&error))])
            }
        }
    }

    async fn answer(&self, delivery: &Delivery, job: &Job, control: &Control) -> (Response, Vec<JobReport>) {
        let Ended { result, stored, notifications, measured } = self.workflow.run(job, control).await;
        let measured = Some(measured);
        let described = match result {
            Ok(outcome) => self.describe(job, &outcome).await.map(|response| (response, outcome)),
            Err(error) => Err(error),
        };
        match described {
            Ok((response, outcome)) => (response, vec![JobReport { measured, ..complete("", job, &outcome, notifications) }]),
            Err(error) => {
                tracing::warn!(code = error.code(), error = %error, "job failed");
                let outcome = job_outcome(&error, stored);
                let (response, failed) = self.answer_failed(delivery, job, &error, outcome, control).await;
                (response, vec![JobReport { measured, ..failed }])
            }
        }
    }

    async fn answer_failed(
        &self,
        delivery: &Delivery,
        job: &Job,
        error: &JobError,
        outcome: JobOutcome,
        control: &Control,
    ) -> (Response, JobReport) {
        let id = Some(job.id.as_str());
        if matches!(error, JobError::Conflict { .. }) {
            // Its caller hears of it in this very response, and the id is another job's.
            return (Response::failed(id, error), entry("", Some(&job.id), JobOutcome::Failed, Some(error)));
        }
        match self.known_end(job, error, outcome, control).await {
            Ok(Some(stored)) => {
                let settled = self.complete_after_all(delivery, job, &stored, control).await;
                let described = self.describe(job, &stored).await;
                (described.unwrap_or_else(|error| Response::failed(id, &error)), settled)
            }
            Ok(None) => (Response::failed(id, error), self.fail(delivery, job.into(), error, outcome, control).await),
            Err(unknown) => (Response::failed(id, &unknown), entry("", Some(&job.id), handed_back(&unknown), Some(&unknown))),
        }
    }

    /// The job body of a request that may hand one in.
    fn admit(&self, exchange: &Exchange) -> Result<Vec<u8>, Response> {
        let body = match exchange.route()? {
            Route::Health => return Err(Response::health(&self.node_id)),
            Route::Generate(body) => body,
        };
        exchange.authorize(&self.auth).map(|()| body)
    }

    async fn describe(&self, job: &Job, outcome: &Outcome) -> Result<Response, JobError> {
        let body = self.workflow.complete_body(job, &outcome.record).await?;
        let metadata = job.callback.as_ref().map(|callback| callback.metadata.clone()).unwrap_or_default();
        Ok(Response::done(outcome, body, metadata))
    }
}
