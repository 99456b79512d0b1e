//! A job on its way into the queue: of all who hand it in meanwhile one sends it, and all of them hear how that ended.

use tokio::sync::watch;

use super::acceptance::NotAccepted;
use crate::job::Job;

/// `Ok`: the queue has confirmed that it has the job.
pub type SendResult = Result<(), NotAccepted>;

/// How a job that someone else sends gets into the queue.
#[derive(Debug, Clone)]
pub struct SendWatch {
    fingerprint: String,
    tenant: Option<String>,
    result: watch::Receiver<Option<SendResult>>,
}

impl SendWatch {
    /// The end of the sending is to be put into the sender.
    pub(super) fn of(job: &Job) -> (watch::Sender<Option<SendResult>>, Self) {
        let (sender, result) = watch::channel(None);
        (sender, Self { fingerprint: job.fingerprint.clone(), tenant: job.tenant.clone(), result })
    }

    /// Whether it is this very request that is being sent.
    #[must_use]
    pub fn is_of(&self, job: &Job) -> bool {
        self.fingerprint == job.fingerprint
    }

    /// Whether the same tenant sends it.
    pub(super) fn is_of_tenant(&self, job: &Job) -> bool {
        self.tenant == job.tenant
    }

    /// Waits until the queue has the job, or will not have it.
    ///
    /// # Errors
    /// Why it is not in the queue.
    pub async fn ended(mut self) -> SendResult {
        let result = self.result.wait_for(Option::is_some).await;
        // Who was to send it is gone: the process ends.
        result.ok().and_then(|result| result.clone()).unwrap_or(Err(NotAccepted::Draining))
    }
}
