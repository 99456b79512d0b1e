//! Messages that were delivered before: what their caller was told, or is to be told, comes before another attempt.

use std::sync::Arc;

use serde_json::json;
use tracing::Instrument as _;

use super::Dispatcher;
use super::acknowledge::{Acknowledger, CONFLICT, failed_state};
use crate::host::in_flight::InFlight;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Problem};
use crate::protocol::reply::JobOutcome;
use crate::store::failed::FailedJob;

impl Acknowledger {
    /// Starts the job of a message that came again, unless its caller was being told that it failed when its host died.
    pub fn resume(&self, in_flight: InFlight, dispatcher: Arc<Dispatcher>) {
        let acknowledger = self.clone();
        let span = in_flight.span.clone();
        let resuming = async move {
            match acknowledger.noted(&in_flight).await {
                Ok(Some(failed)) => acknowledger.tell_failed_again(&in_flight, failed).await,
                Ok(None) => {
                    for in_flight in dispatcher.accept(vec![in_flight]) {
                        acknowledger.not_started(in_flight).await;
                    }
                }
                Err(unknown) => acknowledger.try_again(&in_flight, &unknown).await,
            }
        };
        self.under_way.spawn(resuming.instrument(span));
    }

    /// A job with a record is complete, whatever was noted of it: its caller is told so.
    async fn noted(&self, in_flight: &InFlight) -> Result<Option<FailedJob>, JobError> {
        let Ok(job) = &in_flight.job else { return Ok(None) };
        let store = &self.notification_sender.store;
        let Some(failed) = store.failed(job, &in_flight.message.identity).await? else { return Ok(None) };
        let record = store.record(&job.output.prefix, &job.id).await?;
        Ok(record.is_none_or(|record| record.fingerprint != job.fingerprint).then_some(failed))
    }

    async fn tell_failed_again(&self, in_flight: &InFlight, failed: FailedJob) {
        tracing::warn!(
            code = failed.error.code,
            "a host ended while it notified that this job failed; it is not started again"
        );
        if let Err(undelivered) = self.notification_sender.deliver(&failed.notifications).await {
            return self.try_again(in_flight, &undelivered).await;
        }
        let error = Some(json!(failed.error));
        if failed.dead_letter {
            self.count(in_flight, JobOutcome::DeadLetter.as_str(), None);
            return self.dead_letter(in_flight, error).await;
        }
        self.count(in_flight, JobOutcome::Failed.as_str(), None);
        self.over(in_flight, failed_state(error.as_ref()), error).await;
    }

    /// Before anybody is told that a job failed: whoever gets its message again is to tell the same.
    ///
    /// # Errors
    /// [`JobError::Storage`]; then nobody may be told.
    pub(super) async fn note_failed(
        &self,
        in_flight: &InFlight,
        error: Option<&Problem>,
        notifications: &[Notification],
        dead_letter: bool,
    ) -> Result<(), JobError> {
        let (Ok(job), Some(error)) = (&in_flight.job, error) else { return Ok(()) };
        // The id of a conflict is another job's, and the next attempt finds the same.
        if notifications.is_empty() || error.code == CONFLICT {
            return Ok(());
        }
        let failed = FailedJob {
            fingerprint: job.fingerprint.clone(),
            error: error.clone(),
            dead_letter,
            notifications: notifications.to_vec(),
        };
        self.notification_sender.store.put_failed(job, &in_flight.message.identity, &failed).await
    }

    /// The message is settled.
    pub(super) async fn forget_failed(&self, in_flight: &InFlight) {
        if let Ok(job) = &in_flight.job {
            self.notification_sender.store.remove_failed(job, &in_flight.message.identity).await;
        }
    }
}
