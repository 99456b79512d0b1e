//! Messages that were delivered before: what their caller was told, or is to be told, comes before another attempt.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tracing::Instrument as _;

use super::Dispatcher;
use super::acknowledge::Acknowledger;
use crate::clock::later;
use crate::host::ended::{End, EndedJob};
use crate::host::in_flight::InFlight;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Problem, RetryPolicy};
use crate::store::failed::FailedJob;

impl Acknowledger {
    /// Notifies of a job that is not to be started again: nothing but its notifications is left.
    pub fn notify_again(&self, in_flight: InFlight) {
        let ended = in_flight.message.ended.clone().unwrap_or_else(|| {
            let problem = "the process that generated it died, as often as a job is tried".to_owned();
            EndedJob::failed(End::DeadLetter, in_flight.message.attempt, Problem::from(&JobError::HandlerDied { problem }))
        });
        self.notify(in_flight, ended, None);
    }

    /// Starts the job of a message that came again, unless it has ended already: then its caller is notified, without a handler.
    pub fn resume(&self, in_flight: InFlight, dispatcher: Arc<Dispatcher>) {
        let acknowledger = self.clone();
        // Meanwhile it counts as one that waits for a handler: else the source would be asked for more and more.
        let reserved = dispatcher.reserve();
        let span = in_flight.span.clone();
        let resuming = async move {
            match acknowledger.end_of(&in_flight).await {
                Ok(Some((ended, written))) => acknowledger.notify(in_flight, ended, written),
                Ok(None) => {
                    for in_flight in dispatcher.accept(vec![in_flight]) {
                        acknowledger.not_started(in_flight).await;
                    }
                }
                Err(unknown) => acknowledger.try_again(&in_flight, &unknown).await,
            }
            drop(reserved);
        };
        self.under_way.spawn(resuming.instrument(span));
    }

    /// How the job of a message that came again has ended, with its notifications where they are noted. A job with a record is
    /// complete, whatever was noted of it.
    async fn end_of(&self, in_flight: &InFlight) -> Result<Option<(EndedJob, Option<Vec<Notification>>)>, JobError> {
        let Ok(job) = &in_flight.job else { return Ok(None) };
        let attempt = in_flight.message.attempt;
        let store = self.outbox.store();
        let record = match store.record(&job.output.prefix, &job.id).await {
            // A handler says what lies there.
            Err(unreadable) if unreadable.retry_policy() == RetryPolicy::Terminal => return Ok(None),
            record => record?,
        };
        if let Some(record) = record.filter(|record| record.fingerprint == job.fingerprint) {
            let mut complete = EndedJob::complete(attempt);
            // Where the message came after its job was done, it asks for the notification anew.
            if let Some(sent) = in_flight.message.sent {
                complete.since(sent.max(later(SystemTime::UNIX_EPOCH, Duration::from_secs(record.finished_at_s))));
            }
            return Ok(Some((complete, None)));
        }
        let Some(FailedJob { error, dead_letter, notifications, failed_at_s, .. }) =
            store.failed(job, &in_flight.message.identity).await?
        else {
            return Ok(None);
        };
        tracing::warn!(code = error.code, "a host ended while it notified that this job failed; it is not started again");
        let end = if dead_letter { End::DeadLetter } else { End::Failed };
        let mut failed = EndedJob { noted: true, ..EndedJob::failed(end, attempt, error) };
        failed.since(later(SystemTime::UNIX_EPOCH, Duration::from_secs(failed_at_s)));
        Ok(Some((failed, Some(notifications))))
    }

    /// The message is settled: what was noted of its failure is no reason any more to tell the same again.
    pub(super) async fn settle_note(&self, in_flight: &InFlight, ended: &EndedJob) {
        let Ok(job) = &in_flight.job else { return };
        let store = self.outbox.store();
        let identity = &in_flight.message.identity;
        match ended.end {
            _ if !ended.noted => {}
            End::Complete => store.remove_failed(job, identity).await,
            End::Failed | End::DeadLetter => store.settle_failed(job, identity, &ended.problem()).await,
        }
    }
}
