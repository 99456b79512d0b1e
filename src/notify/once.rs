//! One attempt to deliver a notification, for a sender that decides itself when to try again.

use super::Notifier;
use super::failure::{DeliveryError, Undelivered};
use crate::job::notification::Notification;
use crate::job::outcome::JobError;

/// Why an attempt did not deliver.
#[derive(Debug)]
pub enum OnceError {
    /// The address may not be reached, now or later.
    Refused(JobError),
    /// It may be delivered later.
    Undelivered(Undelivered),
    /// It could not be written, or an image of it not be read: the receiver was not asked.
    NotWritten(JobError),
}

impl Notifier {
    /// The receiver's host name and port: what is down there is down for every notification that goes there. None where this process
    /// has no address for it.
    #[must_use]
    pub fn destination(&self, notification: &Notification) -> Option<String> {
        let url = self.address(notification).ok()?.url;
        let host = url.host_str()?.trim_end_matches('.');
        Some(format!("{host}:{}", url.port_or_known_default().unwrap_or_default()))
    }

    /// Sends a notification once. A receiver that wants to hear nothing (410) has got it.
    ///
    /// # Errors
    /// [`OnceError`]: what kept it from being delivered.
    pub async fn send_once(&self, notification: &Notification) -> Result<(), OnceError> {
        let delivery_request = self.delivery_request(notification).await.map_err(OnceError::NotWritten)?;
        match self.attempt(&delivery_request, self.schedule.attempt_timeout).await {
            Ok(()) => Ok(()),
            Err(DeliveryError::Unwanted) => {
                tracing::warn!(
                    webhook_id = notification.id,
                    kind = notification.as_str(),
                    "the receiver answered 410: not notified again"
                );
                Ok(())
            }
            Err(DeliveryError::Refused(error)) => Err(OnceError::Refused(error.for_field("callback.url"))),
            Err(DeliveryError::Failed(undelivered)) => Err(OnceError::Undelivered(undelivered)),
        }
    }
}
