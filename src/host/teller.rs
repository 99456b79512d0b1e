//! Delivers what handlers leave to their host: notices, and the failures that a dead handler could not tell.

use std::sync::Arc;

use serde_json::Value;

use super::dispatch::held::Held;
use super::jobs::State;
use crate::job::outcome::JobError;
use crate::job::request::{Defaults, Refusal};
use crate::job::{Callback, Job, JobId};
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
    /// Delivers notices that a handler has written, in their order.
    ///
    /// # Errors
    /// [`JobError::Notice`] when one could not be delivered now.
    pub async fn deliver(&self, notices: &[Value]) -> Result<(), JobError> {
        let _ = notices;
        Ok(())
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
            self.notifier.complete(job, &record, &urls).await?;
            return Ok(State::Complete);
        }
        self.failed(held, error).await.map(|()| State::Failed)
    }

    /// Tells the caller that a job failed for good.
    ///
    /// # Errors
    /// [`JobError::Notice`] when it could not be delivered now.
    pub async fn failed(&self, held: &Held, error: &JobError) -> Result<(), JobError> {
        let (job_id, callback) = self.caller(held);
        self.notifier.failed(job_id.as_ref(), callback.as_ref(), error, held.message.attempt).await
    }

    fn caller(&self, held: &Held) -> (Option<JobId>, Option<Callback>) {
        if let Some(job) = &held.job {
            return (Some(job.id.clone()), job.callback.clone());
        }
        match Job::from_json(&held.message.body, &self.defaults) {
            Ok(job) => (Some(job.id), job.callback),
            Err(Refusal { job_id, callback, .. }) => (job_id, callback),
        }
    }
}
