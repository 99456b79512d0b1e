//! Images that callers send along with a request, kept where the handler can fetch them; and images, read back as a stream.

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;

use super::Store;
use super::error::Failure;
use crate::job::JobId;
use crate::job::outcome::{JobError, StoredImage};

/// Where such images lie in the bucket.
pub(super) const DIRECTORY: &str = "inputs/";

impl Store {
    /// The address at which [`Self::put_input`] keeps a file of a job. `name`: part of an object key.
    #[must_use]
    pub fn input_address(&self, job_id: &JobId, name: &str) -> String {
        format!("s3://{}/{DIRECTORY}{job_id}/{name}", self.settings.bucket)
    }

    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    pub async fn put_input(&self, job_id: &JobId, name: &str, content_type: &str, file: Bytes) -> Result<(), JobError> {
        let key = format!("{DIRECTORY}{job_id}/{name}");
        let put = self.client.put_object().bucket(&self.settings.bucket).key(&key).content_type(content_type);
        match put.body(ByteStream::from(file)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(error).storage(self.request("s3:PutObject", &key))),
        }
    }

    /// The file of an image, [`StoredImage::bytes`] long.
    ///
    /// # Errors
    /// [`JobError::Storage`], to be waited for.
    pub async fn image(&self, image: &StoredImage) -> Result<ByteStream, JobError> {
        let get = self.client.get_object().bucket(&image.bucket).key(&image.key).send().await;
        match get {
            Ok(object) => Ok(object.body),
            Err(error) => Err(Failure::new(error).storage(self.request_in("s3:GetObject", &image.bucket, &image.key))),
        }
    }
}
