//! That a job's caller is being notified that it failed, written before that is done: whoever gets the same message again notifies the
//! same, and does not start the job.
//!
//! It lies under `{prefix}{job_id}/failed-{12 of the message's identity}.json` until the message is settled. Another message of the same
//! job, such as a fresh submission, has another identity: a failed job can be sent again.

use aws_sdk_s3::primitives::ByteStream;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::Failure;
use super::once::FAILED;
use super::{FINGERPRINT_IN_KEY, Store};
use crate::job::Job;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Problem, RetryPolicy};

/// How a job failed, and what its caller is notified of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailedJob {
    /// Of the request ([`Job::fingerprint`]).
    pub fingerprint: String,
    pub error: Problem,
    /// The message is dead-lettered once it is told.
    pub dead_letter: bool,
    /// In their order; sent again they have the same ids and the same bytes.
    pub notifications: Vec<Notification>,
}

impl Store {
    /// Notes it. `message`: what tells the message from every other one.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    pub async fn put_failed(&self, job: &Job, message: &str, failed: &FailedJob) -> Result<(), JobError> {
        let key = key(job, message);
        let json = serde_json::to_vec_pretty(failed)
            .map_err(|error| JobError::Internal { problem: format!("{key} could not be written as JSON ({error})") })?;
        let put = self.client.put_object().bucket(&self.settings.bucket).key(&key).content_type("application/json");
        let put = put.body(ByteStream::from(json)).send().await;
        put.map(drop).map_err(|error| Failure::new(error).storage(self.request("s3:PutObject", &key)))
    }

    /// What was noted of this job for this message.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    pub async fn failed(&self, job: &Job, message: &str) -> Result<Option<FailedJob>, JobError> {
        match self.read::<FailedJob>(FAILED, &key(job, message)).await {
            Ok(failed) => Ok(failed.map(|noted| noted.value).filter(|failed| failed.fingerprint == job.fingerprint)),
            Err(unreadable) if unreadable.retry_policy() == RetryPolicy::Terminal => {
                tracing::warn!(error = %unreadable, "something else lies where a failure is noted; it is passed over");
                Ok(None)
            }
            Err(unknown) => Err(unknown),
        }
    }

    /// The message is settled: the note must not keep it from being sent again. What may not be deleted is made void.
    pub async fn remove_failed(&self, job: &Job, message: &str) {
        let key = key(job, message);
        let delete = self.client.delete_object().bucket(&self.settings.bucket).key(&key).send();
        let Err(failure) = delete.await.map_err(Failure::new) else { return };
        let error = failure.storage(self.request("s3:DeleteObject", &key));
        let nothing = Problem { code: String::new(), message: String::new(), field: None };
        let void = FailedJob { fingerprint: String::new(), error: nothing, dead_letter: false, notifications: Vec::new() };
        if self.put_failed(job, message, &void).await.is_err() {
            tracing::warn!(key, %error, "a note of a failed job stays in the bucket: its message cannot be sent again from the dead letters");
        }
    }
}

fn key(job: &Job, message: &str) -> String {
    let message = &base16ct::lower::encode_string(&Sha256::digest(message))[..FINGERPRINT_IN_KEY];
    format!("{}{}/failed-{message}.json", job.output.prefix, job.id)
}
