//! Messages that were refused and that no one could be notified of, where the queue has no place for them: one object each.

use aws_sdk_s3::primitives::ByteStream;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Store;
use super::error::Failure;
use crate::job::outcome::{JobError, Problem};

/// What `dead/{hash of the body}.json` holds.
#[derive(Debug, Serialize)]
pub struct DeadMessage<'a> {
    pub error: Problem,
    /// The kind of the queue, and its own name for the message.
    pub source: &'a str,
    pub message_id: &'a str,
    /// As it came; what is not UTF-8 has replacement characters.
    pub body: String,
}

impl Store {
    /// Keeps a message. The key depends on the body alone, so that a repeated delivery writes the same object again.
    ///
    /// # Errors
    /// [`JobError::Storage`]; then the message is kept nowhere.
    pub async fn keep_dead(&self, body: &[u8], message: &DeadMessage<'_>) -> Result<String, JobError> {
        let name = base16ct::lower::encode_string(&Sha256::digest(body));
        let key = format!("dead/{name}.json");
        let json = serde_json::to_vec_pretty(message)
            .map_err(|error| JobError::Internal { problem: format!("{key} could not be written as JSON ({error})") })?;
        let put = self.client.put_object().bucket(&self.settings.bucket).key(&key).content_type("application/json");
        match put.body(ByteStream::from(json)).send().await {
            Ok(_) => Ok(key),
            Err(error) => Err(Failure::new(error).storage(self.request("s3:PutObject", &key))),
        }
    }
}
