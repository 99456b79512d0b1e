//! Delivers what handlers leave to their host: notifications, and the failures that a dead handler could not report.

use std::sync::Arc;

use super::in_flight::InFlight;
use super::jobs::State;
use crate::job::notification::Notification;
use crate::job::outcome::JobError;
use crate::notify::Notifier;
use crate::store::Store;

/// Notifies callers; clones share their connections.
#[derive(Clone)]
pub struct NotificationSender {
    pub notifier: Arc<Notifier>,
    pub store: Arc<Store>,
}

impl NotificationSender {
    /// Delivers notifications that a handler has written, in their order. The backend gets what a `callback.url` may not.
    ///
    /// # Errors
    /// [`JobError::Notification`] when one could not be delivered now.
    pub async fn deliver(&self, notifications: &[Notification]) -> Result<(), JobError> {
        self.notifier.send_all_or_backend(notifications).await
    }

    /// Notifies the caller how a job ended that no handler could report, or that was cancelled: with its images if they are stored, else
    /// as failed.
    ///
    /// # Errors
    /// [`JobError`] when the bucket could not be asked or the caller not be notified now.
    pub async fn ended(&self, in_flight: &InFlight, error: &JobError) -> Result<State, JobError> {
        if let Ok(job) = &in_flight.job
            && let Some(record) = self.store.record(&job.output.prefix, &job.id).await?
            && record.fingerprint == job.fingerprint
        {
            let urls = self.store.urls(&record).await?;
            self.deliver(&self.notifier.complete(job, &record, &urls)?).await?;
            return Ok(State::Complete);
        }
        self.failed(in_flight, error).await.map(|()| State::Failed)
    }

    /// Notifies the caller that a job failed for good.
    ///
    /// # Errors
    /// [`JobError::Notification`] when it could not be delivered now.
    async fn failed(&self, in_flight: &InFlight, error: &JobError) -> Result<(), JobError> {
        let notifications = self.notifier.failed(&in_flight.notification_target(), error, in_flight.message.attempt)?;
        self.deliver(&notifications).await
    }
}
