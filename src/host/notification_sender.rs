//! Delivers what handlers leave to their host: notifications, and the failures that a dead handler could not tell.

use std::sync::Arc;

use super::in_flight::InFlight;
use super::jobs::State;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, RetryPolicy};
use crate::notify::Notifier;
use crate::store::Store;

/// Tells callers; clones share their connections.
#[derive(Clone)]
pub struct NotificationSender {
    pub notifier: Arc<Notifier>,
    pub store: Arc<Store>,
}

impl NotificationSender {
    /// Delivers what a handler has written of a message, in its order. A `callback.url` that may not be reached is told to the
    /// backend instead: then the answer is false.
    ///
    /// # Errors
    /// [`JobError::Notification`] when one could not be delivered now.
    pub async fn deliver_of(&self, in_flight: &InFlight, notifications: &[Notification]) -> Result<bool, JobError> {
        match self.deliver(notifications).await {
            Err(refused) if refused.retry_policy() == RetryPolicy::Terminal => {
                self.failed(in_flight, &refused).await.map(|()| false)
            }
            result => result.map(|()| true),
        }
    }

    /// Delivers notifications that a handler has written, in their order.
    ///
    /// # Errors
    /// [`JobError::Notification`] when one could not be delivered now.
    pub async fn deliver(&self, notifications: &[Notification]) -> Result<(), JobError> {
        self.notifier.send_all(notifications).await
    }

    /// Tells the caller how a job ended whose handler died over it: with its images if they are stored, else as failed.
    ///
    /// # Errors
    /// [`JobError`] when the bucket could not be asked or the caller not be told now.
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

    /// Tells the caller that a job failed for good.
    ///
    /// # Errors
    /// [`JobError::Notification`] when it could not be delivered now.
    pub async fn failed(&self, in_flight: &InFlight, error: &JobError) -> Result<(), JobError> {
        let notifications = self.notifier.failed(&in_flight.notification_target(), error, in_flight.message.attempt)?;
        self.deliver(&notifications).await
    }
}
