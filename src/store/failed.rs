//! That a job's caller is being notified that it failed, written before that is done: whoever gets the same message again notifies the
//! same, and does not start the job. Whoever runs the job beside it, out of a message that was published twice or came to two hosts,
//! finds the note before it writes its record, and ends as failed too.
//!
//! - It lies under `{prefix}{job_id}/failed-{12 of the message's identity}.json`. Another message of the same job, such as a fresh
//!   submission, has another identity: a failed job can be sent again.
//! - It is written before the record is looked for, and whoever looked for notes before that has written its record within
//!   [`RECORD_WITHIN`]: of both, one sees what the other wrote.
//! - It stays when its message is settled, for those who began before and have not looked yet.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::Failure;
use super::once::FAILED;
use super::{FINGERPRINT_IN_KEY, Store};
use crate::job::Job;
use crate::job::notification::Notification;
use crate::job::outcome::{JobError, Problem, RetryPolicy};

/// Who looks for notes and finds none writes its record so soon, or looks again. Who notes a failure waits so long before it looks for
/// a record.
pub const RECORD_WITHIN: Duration = Duration::from_secs(2);
/// A note so much older than an attempt is of an earlier try, whatever it says: nobody may have been able to settle it.
const OPEN_FOR: Duration = Duration::from_mins(1);
/// The bucket's clock has seconds, and is several.
const CLOCK_STEP: Duration = Duration::from_secs(2);
/// Messages of one job that failed: nobody has more.
const MAX_NOTES: i32 = 100;

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
    #[serde(default)]
    pub stage: Stage,
    /// Seconds since 1970-01-01T00:00:00Z; 0: an earlier release wrote it.
    #[serde(default)]
    pub failed_at_s: u64,
}

/// How far the one is who wrote it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The caller may have heard, or may yet hear that the job is complete.
    #[default]
    Open,
    /// The caller has heard.
    Told,
    /// And the message is settled.
    Settled,
}

impl FailedJob {
    #[must_use]
    pub fn new(job: &Job, error: Problem, dead_letter: bool, notifications: Vec<Notification>) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let fingerprint = job.fingerprint.clone();
        Self { fingerprint, error, dead_letter, notifications, stage: Stage::Open, failed_at_s: now.as_secs() }
    }
}

impl Store {
    /// Notes it. `message`: what tells the message from every other one.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    pub async fn put_failed(&self, job: &Job, message: &str, failed: &FailedJob) -> Result<(), JobError> {
        self.put_json(&key(job, message), failed).await
    }

    /// What was noted of this job for this message, while it is not settled.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    pub async fn failed(&self, job: &Job, message: &str) -> Result<Option<FailedJob>, JobError> {
        Ok(self.note(job, &key(job, message)).await?.filter(|failed| failed.stage != Stage::Settled))
    }

    /// What another attempt at the same request came to since this one `began`, by the bucket's clock: the job has failed, or is about to.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    pub async fn failed_beside(&self, job: &Job, began: SystemTime) -> Result<Option<FailedJob>, JobError> {
        let prefix = format!("{}failed-", directory(job));
        let list = self.client.list_objects_v2().bucket(&self.settings.bucket).prefix(&prefix).max_keys(MAX_NOTES).send();
        let list = list.await.map_err(|error| Failure::new(error).storage(self.request("s3:ListBucket", &prefix)))?;
        for object in list.contents() {
            let modified = object.last_modified().and_then(|modified| SystemTime::try_from(*modified).ok());
            let (Some(key), Some(modified)) = (object.key(), modified) else { continue };
            if modified.checked_add(OPEN_FOR).is_some_and(|end| end < began) {
                continue;
            }
            let Some(failed) = self.note(job, key).await? else { continue };
            if failed.stage == Stage::Open || began.checked_add(CLOCK_STEP).is_some_and(|soon| modified >= soon) {
                return Ok(Some(failed));
            }
        }
        Ok(None)
    }

    async fn note(&self, job: &Job, key: &str) -> Result<Option<FailedJob>, JobError> {
        match self.read::<FailedJob>(FAILED, key).await {
            Ok(read) => Ok(read.found().map(|noted| noted.value).filter(|failed| failed.fingerprint == job.fingerprint)),
            Err(unreadable) if unreadable.retry_policy() == RetryPolicy::Terminal => {
                tracing::warn!(error = %unreadable, "something else lies where a failure is noted; it is passed over");
                Ok(None)
            }
            Err(unknown) => Err(unknown),
        }
    }

    /// The caller has heard of it, and the message is settled: it can be sent again.
    pub async fn settle_failed(&self, job: &Job, message: &str, error: &Problem) {
        if error.is_of_the_request() {
            return self.remove_failed(job, message).await;
        }
        let settled = FailedJob { stage: Stage::Settled, ..FailedJob::new(job, error.clone(), false, Vec::new()) };
        if let Err(error) = self.put_failed(job, message, &settled).await {
            tracing::warn!(%error, "the note of a failed job stays as it is: its message cannot be sent again from the dead letters");
        }
    }

    /// Nobody needs the note any more. What may not be deleted is made void.
    pub async fn remove_failed(&self, job: &Job, message: &str) {
        let key = key(job, message);
        let delete = self.client.delete_object().bucket(&self.settings.bucket).key(&key).send();
        let Err(failure) = delete.await.map_err(Failure::new) else { return };
        let error = failure.storage(self.request("s3:DeleteObject", &key));
        let nothing = Problem { code: String::new(), message: String::new(), field: None, category: None };
        let void = FailedJob { fingerprint: String::new(), ..FailedJob::new(job, nothing, false, Vec::new()) };
        if self.put_failed(job, message, &void).await.is_err() {
            tracing::warn!(key, %error, "a note of a failed job stays in the bucket: its message cannot be sent again from the dead letters");
        }
    }
}

fn directory(job: &Job) -> String {
    format!("{}{}/", job.output.prefix, job.id)
}

fn key(job: &Job, message: &str) -> String {
    let message = &base16ct::lower::encode_string(&Sha256::digest(message))[..FINGERPRINT_IN_KEY];
    format!("{}failed-{message}.json", directory(job))
}
