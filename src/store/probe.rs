//! An object that is written, read, written once more on condition and deleted: whether the bucket does what the function needs.

use aws_sdk_s3::primitives::ByteStream;

use super::Store;
use super::error::{Failure, Kind};
use crate::job::outcome::JobError;

/// What the server made of a second write with `If-None-Match: *`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It was refused, as it must be.
    Kept,
    /// It went through: two deliveries of a job could overwrite each other's result.
    Ignored,
}

impl Store {
    /// # Errors
    /// As S3 says it, with the permission that is missing.
    pub async fn write_probe(&self, key: &str, content: &[u8]) -> Result<(), JobError> {
        let put = self.client.put_object().bucket(&self.settings.bucket).key(key).body(ByteStream::from(content.to_vec()));
        put.send().await.map(drop).map_err(|error| Failure::new(error).storage(self.request("s3:PutObject", key)))
    }

    /// # Errors
    /// As [`Self::write_probe`].
    pub async fn read_probe(&self, key: &str) -> Result<Vec<u8>, JobError> {
        self.object(&self.settings.bucket, key).await
    }

    /// Writes where something is already.
    ///
    /// # Errors
    /// As [`Self::write_probe`].
    pub async fn write_probe_again(&self, key: &str, content: &[u8]) -> Result<Condition, JobError> {
        let put = self.client.put_object().bucket(&self.settings.bucket).key(key).if_none_match("*");
        match put.body(ByteStream::from(content.to_vec())).send().await.map_err(Failure::new) {
            Ok(_) => Ok(Condition::Ignored),
            Err(failure) if failure.kind == Kind::Condition => Ok(Condition::Kept),
            Err(failure) => Err(failure.storage(self.request("s3:PutObject", key))),
        }
    }

    /// # Errors
    /// As [`Self::write_probe`]; the function itself never deletes, so it may lack this permission.
    pub async fn delete_probe(&self, key: &str) -> Result<(), JobError> {
        let delete = self.client.delete_object().bucket(&self.settings.bucket).key(key).send();
        delete.await.map(drop).map_err(|error| Failure::new(error).storage(self.request("s3:DeleteObject", key)))
    }
}
