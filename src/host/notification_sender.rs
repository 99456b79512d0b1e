//! Delivers what handlers leave to their host: notifications, and the failures that a dead handler could not report.

use std::sync::Arc;

use super::in_flight::InFlight;
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

    /// Notifies the caller that the job is complete, if it has a record. Whether it has.
    ///
    /// # Errors
    /// [`JobError`] when the bucket could not be asked or the caller not be notified now.
    pub async fn tell_complete(&self, in_flight: &InFlight) -> Result<bool, JobError> {
        let Ok(job) = &in_flight.job else { return Ok(false) };
        let record = self.store.record(&job.output.prefix, &job.id).await?;
        let Some(record) = record.filter(|record| record.fingerprint == job.fingerprint) else { return Ok(false) };
        let urls = self.store.urls(&record).await?;
        self.deliver(&self.notifier.complete(job, &record, &urls)?).await.map(|()| true)
    }

    /// What the caller is notified of a job that failed for good.
    ///
    /// # Errors
    /// [`JobError::Internal`] when it could not be written.
    pub fn failed(&self, in_flight: &InFlight, error: &JobError) -> Result<Vec<Notification>, JobError> {
        self.notifier.failed(&in_flight.notification_target(), error, in_flight.message.attempt)
    }
}
