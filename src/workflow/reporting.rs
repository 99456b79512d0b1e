//! What callers are told of their jobs, and what is noted of it before.

use super::Workflow;
use super::control::{Control, NotificationMode};
use crate::job::Job;
use crate::job::notification::{Notification, NotificationTarget};
use crate::job::outcome::{JobError, Problem, Record};
use crate::store::dead::DeadMessage;
use crate::store::failed::{FailedJob, RECORD_WITHIN, Stage};

/// What was noted of a job that failed, before its caller hears of it.
pub struct Noted(FailedJob);

impl Workflow {
    /// The notifications that the job is complete, as [`Self::report_failed`] has those of a failure.
    ///
    /// # Errors
    /// [`JobError`] when one could not be written or delivered.
    pub async fn report_complete(&self, job: &Job, record: &Record, control: &Control) -> Result<Vec<Notification>, JobError> {
        let urls = self.store.urls(record).await?;
        self.deliver(self.notifier.complete(job, record, &urls)?, control).await
    }

    /// The notifications that the job failed for good, for the invocation's answer; or, when the invocation delivers them itself,
    /// none, and they are out.
    ///
    /// # Errors
    /// [`JobError::Notification`] when one could not be delivered.
    pub async fn report_failed(
        &self,
        of: &NotificationTarget<'_>,
        error: &JobError,
        attempt: u32,
        control: &Control,
    ) -> Result<Vec<Notification>, JobError> {
        self.deliver(self.notifier.failed(of, error, attempt)?, control).await
    }

    /// Notes what the caller is about to be notified of a job that failed, for whoever gets its message again or runs the job beside it.
    /// The record is to be looked for afterwards. None where there is nothing to note.
    ///
    /// # Errors
    /// When it could not be noted, or no time is left to; then nobody may be told.
    pub async fn note_failed(
        &self,
        job: &Job,
        message: &str,
        (error, attempt, dead_letter): (&JobError, u32, bool),
        control: &Control,
    ) -> Result<Option<Noted>, JobError> {
        let notifications = self.notifier.failed(&job.into(), error, attempt)?;
        if notifications.is_empty() {
            return Ok(None);
        }
        let failed = FailedJob::new(job, Problem::from(error), dead_letter, notifications);
        let noting = async {
            self.store.put_failed(job, message, &failed).await?;
            if !failed.error.is_of_the_request() {
                // What is left of the invocation's time is for the look and the notification.
                tokio::select! {
                    () = tokio::time::sleep(RECORD_WITHIN) => {}
                    _ = control.stopped(&job.id) => {}
                }
            }
            Ok(())
        };
        tokio::select! {
            noted = noting => noted,
            reason = control.over() => Err(reason),
        }?;
        Ok(Some(Noted(failed)))
    }

    /// The caller has heard of what was noted: who begins from now on is another try. Its message comes again where that is not known.
    pub async fn note_reported(&self, job: &Job, message: &str, Noted(failed): Noted) {
        let notified = FailedJob { stage: Stage::Told, ..failed };
        if let Err(error) = self.store.put_failed(job, message, &notified).await {
            tracing::warn!(%error, "the note of a failed job does not say that its caller has heard of it");
        }
    }

    /// What was noted of a job whose message came again, unless it has a record: then it is complete.
    ///
    /// # Errors
    /// As [`Self::stored_outcome`].
    pub async fn noted_failure(&self, job: &Job, message: &str, control: &Control) -> Result<Option<FailedJob>, JobError> {
        let noted = tokio::select! {
            noted = self.store.failed(job, message) => noted?,
            reason = control.over() => return Err(reason),
        };
        let Some(failed) = noted else { return Ok(None) };
        Ok(self.stored_outcome(job, control).await?.is_none().then_some(failed))
    }

    /// Delivers what was noted, as [`Self::report_failed`] does.
    ///
    /// # Errors
    /// [`JobError::Notification`] when it could not be delivered.
    pub async fn report_noted(&self, failed: &FailedJob, control: &Control) -> Result<(), JobError> {
        self.deliver(failed.notifications.clone(), control).await.map(drop)
    }

    async fn deliver(&self, notifications: Vec<Notification>, control: &Control) -> Result<Vec<Notification>, JobError> {
        if control.notification_mode() == NotificationMode::Later {
            return Ok(notifications);
        }
        tokio::select! {
            sent = self.notifier.send_all_or_backend(&notifications) => sent.map(|()| Vec::new()),
            reason = control.over() => {
                let kind = notifications.first().map_or("terminal", Notification::as_str);
                let problem = format!("{kind}: no time was left to deliver it ({reason})");
                Err(JobError::Notification { problem, cause: None })
            }
        }
    }

    /// Whether anyone hears of this error.
    #[must_use]
    pub fn can_notify(&self, of: &NotificationTarget<'_>, error: &JobError) -> bool {
        let notifications = self.notifier.failed(of, error, 1);
        notifications.is_ok_and(|notifications| notifications.iter().any(|notification| self.notifier.can_reach(notification)))
    }

    /// Keeps a refused message in the bucket, and returns its key.
    ///
    /// # Errors
    /// [`JobError::Storage`]; then it is kept nowhere.
    pub async fn keep_dead(&self, source: &str, message_id: &str, body: &[u8], error: &JobError) -> Result<String, JobError> {
        let message = DeadMessage {
            error: Problem::from(error),
            source: source.to_owned(),
            message_id: message_id.to_owned(),
            body: String::from_utf8_lossy(body).into_owned(),
        };
        self.store.keep_dead(body, &message).await
    }

    /// What a caller is notified of a finished job, in a notification and in an HTTP response alike; without the caller's metadata.
    ///
    /// # Errors
    /// [`JobError::Storage`] when an address of an image could not be made.
    pub async fn complete_body(&self, job: &Job, record: &Record) -> Result<serde_json::Value, JobError> {
        let urls = self.store.urls(record).await?;
        Ok(self.notifier.complete_body(job, record, &urls))
    }
}
