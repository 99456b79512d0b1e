//! The record of a job in the bucket: the proof that the job is done.

use std::time::SystemTime;

use super::error::Failure;
use super::once::{self, Read};
use super::{Store, under};
use crate::job::outcome::{JobError, Record};
use crate::job::{Job, JobId};

/// A record, or since when there is none.
#[derive(Debug)]
pub enum LookedUp {
    Record(Record),
    /// By the bucket's clock.
    NoneAt(SystemTime),
}

impl Store {
    /// The record of a job that is done already.
    ///
    /// # Errors
    /// When the bucket cannot be asked, or something else lies where the record belongs.
    pub async fn record(&self, prefix: &str, job_id: &JobId) -> Result<Option<Record>, JobError> {
        let read = self.read(once::RECORD, &record_key(prefix, job_id.as_str())).await?;
        Ok(read.found().map(|found| found.value))
    }

    /// As [`Self::record`], for whoever is to run the job where there is none.
    ///
    /// # Errors
    /// As [`Self::record`].
    pub async fn look_up(&self, prefix: &str, job_id: &JobId) -> Result<LookedUp, JobError> {
        match self.read(once::RECORD, &record_key(prefix, job_id.as_str())).await? {
            Read::Found(found) => Ok(LookedUp::Record(found.value)),
            Read::Absent { at } => Ok(LookedUp::NoneAt(at.unwrap_or_else(SystemTime::now))),
        }
    }

    /// Where the record of this job can be read by whoever sees its images; none where those are not public.
    #[must_use]
    pub fn public_record_url(&self, job: &Job) -> Option<String> {
        let key = record_key(&job.output.prefix, job.id.as_str());
        self.settings.public_base_url.as_deref().map(|base| under(base, &key))
    }

    /// Takes a record back that came after the job was reported as failed.
    pub async fn remove_record(&self, prefix: &str, job_id: &JobId) {
        let key = record_key(prefix, job_id.as_str());
        let delete = self.client.delete_object().bucket(&self.settings.bucket).key(&key).send();
        if let Err(failure) = delete.await.map_err(Failure::new) {
            let error = failure.storage(self.request("s3:DeleteObject", &key));
            tracing::error!(key, %error, "the record of a job that was reported as failed stays in the bucket");
        }
    }

    /// Writes the record, unless another delivery of the job was faster: then its record counts and is returned.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be tried again.
    pub async fn put_record(&self, prefix: &str, record: &Record) -> Result<Option<Record>, JobError> {
        let existing = self.put_once(once::RECORD, &record_key(prefix, &record.job_id), record).await?;
        Ok(existing.map(|existing| existing.value))
    }
}

fn record_key(prefix: &str, job_id: &str) -> String {
    format!("{prefix}{job_id}/result.json")
}
