//! Without a host: messages that come again although their caller may have been told that the job failed.

use super::Handler;
use super::batch::Waiting;
use super::reports::{entry, handed_back};
use crate::events::Delivery;
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::protocol::reply::{JobOutcome, JobReport};
use crate::workflow::Noted;
use crate::workflow::control::{Control, NotificationMode};

/// A message with its place in the event and its group.
type Placed = (usize, Option<String>, JobReport);

impl Handler {
    /// Settles those whose caller was being told that they failed when an earlier invocation ended, or whose batch came back for
    /// another message's sake; returns the others. A host looks itself, before it hands a message to a handler.
    pub(super) async fn reported_before(
        &self,
        waiting: Vec<Waiting<Job>>,
        control: &Control,
    ) -> (Vec<Placed>, Vec<Waiting<Job>>) {
        let mut notified = Vec::new();
        let mut others = Vec::new();
        for waiting in waiting {
            match self.report_noted(&waiting, control).await {
                Some(report) => notified.push((waiting.place, waiting.delivery.group.clone(), report)),
                None => others.push(waiting),
            }
        }
        (notified, others)
    }

    async fn report_noted(&self, Waiting { delivery, job, .. }: &Waiting<Job>, control: &Control) -> Option<JobReport> {
        if control.notification_mode() == NotificationMode::Later || delivery.attempt == 1 {
            return None;
        }
        let report = |outcome, error: &JobError| entry(&delivery.message_id, Some(&job.id), outcome, Some(error));
        let failed = match self.workflow.noted_failure(job, &delivery.identity, control).await {
            Ok(failed) => failed?,
            Err(unknown) => return Some(report(handed_back(&unknown), &unknown)),
        };
        if let Err(undelivered) = self.workflow.report_noted(&failed, control).await {
            return Some(report(handed_back(&undelivered), &undelivered));
        }
        let outcome = if failed.dead_letter { JobOutcome::DeadLetter } else { JobOutcome::Failed };
        Some(JobReport { error: Some(failed.error), ..entry(&delivery.message_id, Some(&job.id), outcome, None) })
    }

    /// Before the caller is told that a job failed: whoever gets its message again is to tell the same.
    pub(super) async fn note_failed(
        &self,
        delivery: &Delivery,
        job: &Job,
        error: &JobError,
        outcome: JobOutcome,
        control: &Control,
    ) -> Result<Option<Noted>, JobError> {
        let is_reported = matches!(outcome, JobOutcome::Failed | JobOutcome::DeadLetter);
        // Of a conflict the next attempt finds the same; and the id is another job's.
        let is_own = !matches!(error, JobError::Conflict { .. });
        if control.notification_mode() == NotificationMode::Later || !is_reported || !is_own {
            return Ok(None);
        }
        let dead_letter = outcome == JobOutcome::DeadLetter;
        self.workflow.note_failed(job, &delivery.identity, (error, delivery.attempt, dead_letter), control).await
    }
}
