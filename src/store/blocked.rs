//! That a job is not allowed, in `{prefix}{job_id}/blocked.json`, written before anybody hears of it: whoever gets the job again tells the
//! same, and generates nothing.

use super::error::Failure;
use super::once::BLOCKED;
use super::{Store, input};
use crate::job::outcome::JobError;
use crate::job::safety::BlockedJob;
use crate::job::url::AssetUrl;
use crate::job::{Job, JobId};

impl Store {
    /// What is noted of a job of this id; it may be another request's.
    ///
    /// # Errors
    /// When the bucket cannot be asked, or something else lies there.
    pub async fn blocked(&self, prefix: &str, job_id: &JobId) -> Result<Option<BlockedJob>, JobError> {
        Ok(self.read(BLOCKED, &key(prefix, job_id)).await?.found().map(|found| found.value))
    }

    /// Notes it. Of a job that was corrected, or is judged by another policy, and is not allowed again, the last note stays.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for: then nobody may be told.
    pub async fn put_blocked(&self, job: &Job, blocked: &BlockedJob) -> Result<(), JobError> {
        let key = key(&job.output.prefix, &job.id);
        let Some(earlier) = self.put_once(BLOCKED, &key, blocked).await? else { return Ok(()) };
        if earlier.value.fingerprint == blocked.fingerprint && earlier.value.policy == blocked.policy {
            return Ok(());
        }
        self.put_json(&key, blocked).await
    }

    /// Deletes the inputs of a job that were uploaded with it, and this process's copies of all its inputs. Of those that lie elsewhere the sender disposes.
    pub async fn delete_uploads(&self, job: &Job) {
        let own = format!("{}{}/", input::DIRECTORY, job.id);
        for (field, asset) in job.inputs() {
            self.cache.forget(&asset.identity());
            let AssetUrl::S3 { bucket, key } = asset else { continue };
            if *bucket != self.settings.bucket || !key.starts_with(&own) {
                continue;
            }
            let delete = self.client.delete_object().bucket(bucket).key(key).send();
            match delete.await.map_err(Failure::new) {
                Ok(_) => tracing::info!(field, "an input of a job that is not allowed was deleted"),
                Err(failure) => {
                    let error = failure.storage(self.request("s3:DeleteObject", key));
                    tracing::error!(field, %error, "an input of a job that is not allowed stays in the bucket");
                }
            }
        }
    }
}

pub(super) const FILE: &str = "blocked.json";

fn key(prefix: &str, job_id: &JobId) -> String {
    format!("{prefix}{job_id}/{FILE}")
}
