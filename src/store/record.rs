//! The record of a job in the bucket: the proof that the job is done.

use super::Store;
use super::once;
use crate::job::JobId;
use crate::job::outcome::{JobError, Record};

impl Store {
    /// The record of a job that is done already.
    ///
    /// # Errors
    /// When the bucket cannot be asked, or something else lies where the record belongs.
    pub async fn record(&self, prefix: &str, job_id: &JobId) -> Result<Option<Record>, JobError> {
        let found = self.read(once::RECORD, &record_key(prefix, job_id.as_str())).await?;
        Ok(found.map(|found| found.value))
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
