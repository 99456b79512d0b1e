//! Delivers what handlers leave to their host: notices, and the failures that a dead handler could not tell.

use std::sync::Arc;

use super::dispatch::held::Held;
use super::jobs::State;
use crate::job::Job;
use crate::job::notice::Notice;
use crate::job::outcome::{JobError, Remedy};
use crate::job::request::Defaults;
use crate::notify::Notifier;
use crate::store::Store;

/// Tells callers; clones share their connections.
#[derive(Clone)]
pub struct Teller {
    pub notifier: Arc<Notifier>,
    pub store: Arc<Store>,
    pub defaults: Defaults,
}

impl Teller {
    /// Delivers what a handler has written of a message, in its order. A `callback.url` that may not be reached is told to the
    /// backend instead: then the answer is false.
    ///
    /// # Errors
    /// [`JobError::Notice`] when one could not be delivered now.
    pub async fn deliver_of(&self, held: &Held, notices: &[Notice]) -> Result<bool, JobError> {
        match self.deliver(notices).await {
            Err(refused) if refused.remedy() == Remedy::GiveUp => self.failed(held, &refused).await.map(|()| false),
            result => result.map(|()| true),
        }
    }

    /// Delivers notices that a handler has written, in their order.
    ///
    /// # Errors
    /// [`JobError::Notice`] when one could not be delivered now.
    pub async fn deliver(&self, notices: &[Notice]) -> Result<(), JobError> {
        self.notifier.send_all(notices).await
    }

    /// Tells the caller how a job ended whose handler died over it: with its pictures if they are stored, else as failed.
    ///
    /// # Errors
    /// [`JobError`] when the bucket could not be asked or the caller not be told now.
    pub async fn ended(&self, held: &Held, error: &JobError) -> Result<State, JobError> {
        if let Some(job) = &held.job
            && let Some(record) = self.store.record(&job.output.prefix, &job.id).await?
            && record.fingerprint == job.fingerprint
        {
            let urls = self.store.urls(&record).await?;
            self.deliver(&self.notifier.complete(job, &record, &urls)?).await?;
            return Ok(State::Complete);
        }
        self.failed(held, error).await.map(|()| State::Failed)
    }

    /// Tells the caller that a job failed for good.
    ///
    /// # Errors
    /// [`JobError::Notice`] when it could not be delivered now.
    pub async fn failed(&self, held: &Held, error: &JobError) -> Result<(), JobError> {
        let attempt = held.message.attempt;
        let notices = match (&held.job, Job::from_json(&held.message.body, &self.defaults)) {
            (Some(job), _) => self.notifier.failed(&job.into(), error, attempt)?,
            (None, Ok(job)) => self.notifier.failed(&(&job).into(), error, attempt)?,
            (None, Err(refusal)) => self.notifier.failed(&(&refusal).into(), error, attempt)?,
        };
        self.deliver(&notices).await
    }
}
