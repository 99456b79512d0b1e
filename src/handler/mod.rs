//! One event in, one reply out.

mod batch;
mod http;
pub mod lambda;
pub mod line;
mod redelivery;
mod reports;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::{Instrument as _, Span};

use self::batch::{Batch, Line, Waiting};
use self::reports::{complete, entry, handed_back, job_outcome};
use crate::events::auth::Auth;
use crate::events::{Delivery, Event, EventError, sqs};
use crate::job::capabilities::Capabilities;
use crate::job::notification::NotificationTarget;
use crate::job::outcome::{JobError, Outcome, RetryPolicy};
use crate::job::request::{Defaults, Refusal};
use crate::job::segmenter::Segmenter;
use crate::job::upscalers::Upscalers;
use crate::job::{Job, JobId, trace};
use crate::metrics::emf;
use crate::protocol::reply::{self, JobOutcome, JobReport};
use crate::protocol::report;
use crate::shown;
use crate::workflow::control::{Control, NotificationMode};
use crate::workflow::{Ended, Spent, Workflow};

/// Characters of what is said of all the failed messages of a batch.
const MAX_REASONS_CHARS: usize = 10_000;

/// The function itself, in every role. It takes one job at a time, or several that can be generated as one.
pub struct Handler {
    pub workflow: Workflow,
    pub defaults: Defaults,
    /// What a host is notified that it can do.
    pub capabilities: Capabilities,
    pub upscalers: Upscalers,
    pub segmenter: Segmenter,
    pub node_id: String,
    pub auth: Auth,
    /// After this many deliveries of a message its caller is notified that the job failed.
    pub max_attempts: u32,
    /// Of which queues refused messages are kept even when their sender was notified.
    pub keep_refused: KeepRefused,
    /// Jobs share a batch as long as their images have so many pixels together.
    pub max_batch_px: u64,
    /// The model's name, where CloudWatch is to make metrics of what is written to standard output.
    pub emf_model: Option<String>,
}

/// `keep_refused` of the queues that the platform takes messages from.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeepRefused {
    pub sqs: bool,
    pub rabbitmq: bool,
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
    /// The error type that the Runtime API gets.
    #[must_use]
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::Event(_) => "Atelier.UnknownEvent",
            Self::Batch { .. } => "Atelier.Retry",
        }
    }
}

impl Handler {
    /// Takes one event from arrival to reply. Under `atelier host`, which delivers notifications itself, the reply says of every job
    /// what became of it ([`JobReport`]); RabbitMQ then has partial failure like SQS.
    ///
    /// # Errors
    /// [`HandlerError`] when the source has no other way to learn that something is to be redelivered.
    pub async fn handle(&self, payload: &RawValue, control: &Control) -> Result<Value, HandlerError> {
        let has_host = control.notification_mode() == NotificationMode::Later;
        let (reply, jobs) = match Event::parse(payload)? {
            Event::Sqs(batch) => {
                let jobs = self.acknowledge(batch.deliveries, control).await;
                (sqs::batch_reply(&jobs), jobs)
            }
            Event::RabbitMq(batch) => {
                let jobs = self.acknowledge(batch.deliveries, control).await;
                let reply = if has_host { sqs::batch_reply(&jobs) } else { all_or_nothing(&jobs)? };
                (reply, jobs)
            }
            Event::Http(exchange) => {
                let (response, jobs) = self.respond(&exchange, control).await;
                (exchange.reply(&response), jobs)
            }
            Event::Direct(body) => {
                let (response, jobs) = self.respond_to(&Delivery::once("invoke", None, body), control).await;
                // An error is what brings an asynchronous invocation back.
                all_or_nothing(&jobs)?;
                (response.body, jobs)
            }
        };
        if has_host {
            return Ok(reply::encode(reply, &jobs));
        }
        self.report_cloudwatch(&jobs);
        Ok(reply)
    }

    fn report_cloudwatch(&self, jobs: &[JobReport]) {
        let Some(model) = &self.emf_model else { return };
        for job in jobs {
            let job_id = job.job_id.as_deref().unwrap_or_default();
            let outcome = job.outcome.as_str();
            match &job.measured {
                Some(measured) => report::write_line(&emf::line(model, outcome, job_id, measured)),
                None if job.is_refused() => report::write_line(&emf::refused(model, outcome)),
                None => {}
            }
        }
    }

    /// Why this process is to end after its reply, if it is: another one may do what this one cannot any more.
    #[must_use]
    pub fn spent(&self) -> Option<Spent> {
        self.workflow.spent()
    }

    /// Settles the messages of an event, batch by batch.
    async fn acknowledge(&self, deliveries: Vec<Delivery>, control: &Control) -> Vec<JobReport> {
        let mut line = Line::new(deliveries, &self.defaults);
        let mut settled = BTreeMap::new();
        let mut stopped_groups = Vec::new();
        while let Some(batch) = line.next(self.max_batch_px) {
            let ended = match batch {
                Batch::Refused(refused) => {
                    let Waiting { place, delivery, job: refusal } = *refused;
                    let span = span(refusal.job_id.as_ref(), &delivery);
                    let refused = self.refuse(&delivery, &refusal, control).instrument(span).await;
                    vec![(place, delivery.group, refused)]
                }
                Batch::Jobs(members) => self.run(members, &stopped_groups, control).await,
            };
            for (place, group, job) in ended {
                if job.outcome.goes_back() {
                    stopped_groups.extend(group);
                }
                settled.insert(place, job);
            }
        }
        settled.into_values().collect()
    }

    /// What becomes of a message that holds no job. The id in it may be that of a job that is done: then no one is notified that it failed.
    async fn refuse(&self, delivery: &Delivery, refusal: &Refusal, control: &Control) -> JobReport {
        let message_id = &delivery.message_id;
        let recorded = match &refusal.job_id {
            Some(job_id) => self.workflow.is_recorded(&self.defaults.prefix, job_id, control).await,
            None => Ok(false),
        };
        let conflict = match (recorded, &refusal.job_id) {
            (Ok(true), Some(job_id)) => Some(JobError::Conflict { job_id: job_id.clone() }),
            (Err(unknown), job_id) => return entry(message_id, job_id.as_ref(), handed_back(&unknown), Some(&unknown)),
            _ => None,
        };
        report_log(&refusal.error, delivery, false);
        let error = conflict.as_ref().unwrap_or(&refusal.error);
        let of = NotificationTarget::from(refusal);
        // As of a job that could be read: a host moves what conflicts.
        let has_host = control.notification_mode() == NotificationMode::Later;
        let outcome = if has_host && conflict.is_some() { JobOutcome::DeadLetter } else { JobOutcome::Failed };
        let failed = self.fail(delivery, of, error, outcome, control).await;
        self.keep(delivery, &of, error, failed, control).await
    }

    /// Runs the jobs of a batch, at the same time.
    async fn run(
        &self,
        members: Vec<Waiting<Job>>,
        stopped_groups: &[String],
        control: &Control,
    ) -> Vec<(usize, Option<String>, JobReport)> {
        let ends = control.is_shutting_down() || self.spent().is_some();
        let (stopped, begun): (Vec<_>, Vec<_>) = members
            .into_iter()
            .partition(|waiting| ends || waiting.delivery.group.as_ref().is_some_and(|group| stopped_groups.contains(group)));
        let (mut notified, begun) = self.reported_before(begun, control).await;
        let jobs: Vec<_> = begun.iter().map(|waiting| (&waiting.job, span(Some(&waiting.job.id), &waiting.delivery))).collect();
        let ended = self.workflow.run_together(&jobs, control).await;
        let finalized = begun.iter().zip(&jobs).zip(ended).map(async |((waiting, (_, span)), ended)| {
            let Waiting { place, delivery, job } = waiting;
            let settled = self.finalize(delivery, job, ended, control).instrument(span.clone()).await;
            (*place, delivery.group.clone(), settled)
        });
        let mut finalized = join_all(finalized).await;
        finalized.extend(stopped.into_iter().map(|Waiting { place, delivery, .. }| {
            let error = if ends {
                JobError::ShuttingDown
            } else {
                JobError::Internal { problem: "an earlier message of its group is to be settled first".into() }
            };
            (place, delivery.group, entry(&delivery.message_id, None, JobOutcome::Retry, Some(&error)))
        }));
        finalized.append(&mut notified);
        finalized
    }

    /// What becomes of a message whose job was run.
    async fn finalize(&self, delivery: &Delivery, job: &Job, ended: Ended, control: &Control) -> JobReport {
        let Ended { result, stored, notifications, measured } = ended;
        let measured = Some(measured);
        let error = match result {
            Ok(outcome) => return JobReport { measured, ..complete(&delivery.message_id, job, &outcome, notifications) },
            Err(error) => error,
        };
        let last = delivery.attempt >= self.max_attempts;
        // A host can put a message back without counting its attempt.
        let has_host = control.notification_mode() == NotificationMode::Later;
        let uncounted = has_host && matches!(error, JobError::ShuttingDown | JobError::Signing { .. });
        let outcome = match job_outcome(&error, stored) {
            // A host moves it itself; elsewhere it is seen to once its caller was notified.
            JobOutcome::Failed if has_host && matches!(error, JobError::Conflict { .. }) => JobOutcome::DeadLetter,
            JobOutcome::Retry if last && !stored && !uncounted => JobOutcome::DeadLetter,
            outcome => outcome,
        };
        report_log(&error, delivery, last);
        let not_known = |unknown: &JobError| entry(&delivery.message_id, Some(&job.id), handed_back(unknown), Some(unknown));
        let noted = match self.note_failed(delivery, job, &error, outcome, control).await {
            Ok(noted) => noted,
            Err(unknown) => return JobReport { measured, ..not_known(&unknown) },
        };
        let settled = match self.known_end(job, &error, outcome, control).await {
            Ok(Some(stored)) => self.complete_after_all(delivery, job, &stored, control).await,
            Ok(None) => {
                let failed = self.fail(delivery, job.into(), &error, outcome, control).await;
                if let Some(noted) = noted.filter(|_| failed.outcome.is_over()) {
                    self.workflow.note_reported(job, &delivery.identity, noted).await;
                }
                // A job that used the GPU would use it again each time that it is handed back.
                let is_refused = matches!(error, JobError::Invalid { .. } | JobError::Input { .. });
                let is_conflict = matches!(error, JobError::Conflict { .. });
                match &measured {
                    Some(measured) if is_conflict || (is_refused && measured.denoising_steps == 0) => {
                        self.keep(delivery, &job.into(), &error, failed, control).await
                    }
                    _ => failed,
                }
            }
            Err(unknown) => not_known(&unknown),
        };
        JobReport { measured, ..settled }
    }

    /// The outcome of a job that is about to be reported as failed, if the bucket has one: what went wrong after the record, or in an
    /// attempt beside the one that wrote it, is no failure of the job.
    ///
    /// # Errors
    /// When it is not known whether there is a record: that is a reason to wait.
    async fn known_end(
        &self,
        job: &Job,
        error: &JobError,
        outcome: JobOutcome,
        control: &Control,
    ) -> Result<Option<Outcome>, JobError> {
        if !outcome.is_over() || matches!(error, JobError::Conflict { .. }) {
            return Ok(None);
        }
        match self.workflow.stored_outcome(job, control).await {
            // Waiting does not help: something else lies where the record belongs.
            Err(unreadable) if unreadable.retry_policy() == RetryPolicy::Terminal => Ok(None),
            known => known,
        }
    }

    async fn complete_after_all(&self, delivery: &Delivery, job: &Job, outcome: &Outcome, control: &Control) -> JobReport {
        match self.workflow.report_complete(job, &outcome.record, control).await {
            Ok(notifications) => complete(&delivery.message_id, job, outcome, notifications),
            Err(undelivered) => entry(&delivery.message_id, Some(&job.id), handed_back(&undelivered), Some(&undelivered)),
        }
    }

    /// Notifies the caller where `outcome` says so; a caller who cannot be notified is a reason to bring the message back.
    async fn fail(
        &self,
        delivery: &Delivery,
        of: NotificationTarget<'_>,
        error: &JobError,
        outcome: JobOutcome,
        control: &Control,
    ) -> JobReport {
        let message_id = &delivery.message_id;
        if !outcome.is_over() {
            return entry(message_id, of.job_id, outcome, Some(error));
        }
        match self.workflow.report_failed(&of, error, delivery.attempt, control).await {
            Ok(notifications) => JobReport { notifications, ..entry(message_id, of.job_id, outcome, Some(error)) },
            Err(undelivered) => {
                tracing::warn!(message_id, error = %undelivered, "failed notification not delivered");
                entry(message_id, of.job_id, handed_back(&undelivered), Some(&undelivered))
            }
        }
    }

    /// Sees that a refused message is kept of which no one could be notified, and every conflict: SQS moves what is handed back, other
    /// queues of the platform have nothing of the kind. A host keeps its messages itself.
    async fn keep(
        &self,
        delivery: &Delivery,
        of: &NotificationTarget<'_>,
        error: &JobError,
        failed: JobReport,
        control: &Control,
    ) -> JobReport {
        let is_notified = of.job_id.is_some() && self.workflow.can_notify(of, error);
        let keeps_all = match delivery.source {
            _ if matches!(error, JobError::Conflict { .. }) => true,
            "sqs" => self.keep_refused.sqs,
            _ => self.keep_refused.rabbitmq,
        };
        let is_settled = failed.outcome != JobOutcome::Failed || control.notification_mode() == NotificationMode::Later;
        if is_settled || (is_notified && !keeps_all) {
            return failed;
        }
        if delivery.source == "sqs" {
            return JobReport { outcome: JobOutcome::DeadLetter, ..failed };
        }
        match self.workflow.keep_dead(delivery.source, &delivery.message_id, &delivery.body, error).await {
            Ok(key) => {
                tracing::warn!(message_id = delivery.message_id, key, "a refused message is kept in the bucket");
                failed
            }
            Err(error) => entry(&delivery.message_id, of.job_id, handed_back(&error), Some(&error)),
        }
    }
}

/// RabbitMQ batches are settled whole.
fn all_or_nothing(jobs: &[JobReport]) -> Result<Value, HandlerError> {
    let failed = jobs.iter().filter(|job| job.outcome.goes_back());
    let reasons: Vec<&str> = failed.filter_map(|job| Some(job.error.as_ref()?.message.as_str())).collect();
    if reasons.is_empty() {
        return Ok(Value::Null);
    }
    let reasons_text = shown::clipped(reasons.join("; "), MAX_REASONS_CHARS);
    Err(HandlerError::Batch { failed: reasons.len(), all: jobs.len(), reasons: reasons_text })
}

/// Every line of the log about this attempt stands in it.
fn span(job_id: Option<&JobId>, delivery: &Delivery) -> Span {
    trace::span(job_id.map_or("", JobId::as_str), delivery.source, delivery.attempt, delivery.trace)
}

fn report_log(error: &JobError, delivery: &Delivery, last: bool) {
    trace::fail(&Span::current(), error.code());
    let retry = error.retry_policy() != RetryPolicy::Terminal;
    tracing::warn!(
        message_id = delivery.message_id,
        code = error.code(),
        error = %error,
        retry,
        last_attempt = last,
        "job failed"
    );
}
