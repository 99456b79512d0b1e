//! An object that is written, read, written once more on condition and deleted: whether the bucket does what the function needs.

use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::primitives::ByteStream;

use super::Store;
use super::error::{Failure, Kind};
use crate::job::outcome::{JobError, RetryPolicy};

const CONTENT: &[u8] = b"{\"written_by\": \"atelier\", \"why\": \"to see whether results can be stored here\"}\n";

/// What the server makes of a second write with `If-None-Match: *`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// It is refused, as it must be.
    OnCondition,
    /// It goes through: two deliveries of a job could overwrite each other's result.
    ConditionIgnored,
    /// It is not asked for: `store.conditional_writes` is false.
    Unconditional,
}

impl Writes {
    /// What an operator should know of it; empty where all is well.
    #[must_use]
    pub fn warning(self) -> &'static str {
        match self {
            Self::OnCondition => "",
            Self::ConditionIgnored => {
                "this server ignores If-None-Match, so two deliveries of a job can overwrite each other's result; use a server \
                 with conditional writes, or one host"
            }
            Self::Unconditional => {
                "store.conditional_writes is false: that is safe while one host alone uses the bucket; two could overwrite each \
                 other's results"
            }
        }
    }
}

/// One write of the probe.
#[derive(Clone, Copy)]
struct Put {
    on_condition: bool,
    /// As the SDK has them where nothing else is set.
    checksums: bool,
}

impl Store {
    /// Of the object that [`Self::probe_writes`] writes. It stays there: a function need not be allowed to delete.
    #[must_use]
    pub fn probe_key(prefix: &str) -> String {
        format!("{prefix}.probe.json")
    }

    /// Writes as the record of a job is written, twice where nothing was there before.
    ///
    /// # Errors
    /// [`JobError::Storage`] in words: also where the server knows no writes on condition, or refuses checksum headers.
    pub async fn probe_writes(&self, key: &str) -> Result<Writes, JobError> {
        if !self.settings.conditional_writes {
            self.write_probe(key, CONTENT).await?;
            return Ok(Writes::Unconditional);
        }
        let put = Put { on_condition: true, checksums: true };
        for _ in 0..2 {
            match self.put_probe(key, CONTENT, put).await {
                Ok(()) => {}
                Err(failure) if failure.kind == Kind::Condition => return Ok(Writes::OnCondition),
                Err(failure) => return Err(self.diagnose(key, put, failure).await),
            }
        }
        Ok(Writes::ConditionIgnored)
    }

    /// # Errors
    /// As S3 says it, with the permission that is missing; or that the server refuses checksum headers.
    pub async fn write_probe(&self, key: &str, content: &[u8]) -> Result<(), JobError> {
        let put = Put { on_condition: false, checksums: true };
        match self.put_probe(key, content, put).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(self.diagnose(key, put, failure).await),
        }
    }

    /// # Errors
    /// As [`Self::write_probe`].
    pub async fn read_probe(&self, key: &str) -> Result<Vec<u8>, JobError> {
        self.object(&self.settings.bucket, key).await
    }

    /// # Errors
    /// As [`Self::write_probe`]; a function that may not delete leaves losers' images to the bucket's lifecycle.
    pub async fn delete_probe(&self, key: &str) -> Result<(), JobError> {
        let delete = self.client.delete_object().bucket(&self.settings.bucket).key(key).send();
        delete.await.map(drop).map_err(|error| Failure::new(error).storage(self.request("s3:DeleteObject", key)))
    }

    async fn put_probe(&self, key: &str, content: &[u8], put: Put) -> Result<(), Failure> {
        let request = self.client.put_object().bucket(&self.settings.bucket).key(key).content_type("application/json");
        let request = request.set_if_none_match(put.on_condition.then(|| "*".to_owned()));
        let request = request.body(ByteStream::from(content.to_vec())).customize();
        let request = if put.checksums {
            request
        } else {
            let plain = aws_sdk_s3::config::Builder::new();
            request.config_override(plain.request_checksum_calculation(RequestChecksumCalculation::WhenRequired))
        };
        request.send().await.map(drop).map_err(Failure::new)
    }

    /// What of a write it is that a server does not take, found by leaving it out.
    async fn diagnose(&self, key: &str, put: Put, failure: Failure) -> JobError {
        let request = self.request("s3:PutObject", key);
        if failure.kind != Kind::NotUnderstood {
            return failure.storage(request);
        }
        let words = if put.on_condition && self.put_probe(key, CONTENT, Put { on_condition: false, ..put }).await.is_ok() {
            "this server does not know writes on condition (If-None-Match), by which two hosts cannot overwrite each other's \
             results; use one that does (AWS S3, a recent MinIO or Ceph), or set store.conditional_writes: false where one host \
             alone uses the bucket"
        } else if self.put_probe(key, CONTENT, Put { on_condition: false, checksums: false }).await.is_ok() {
            "this server refuses the checksum headers of AWS's SDKs; set AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
        } else {
            return failure.storage(request);
        };
        let error = failure.storage(request);
        JobError::Storage { problem: format!("{words}: {error}"), retry_policy: RetryPolicy::Wait, cause: Some(error.into()) }
    }
}
