//! Messages that were refused and that no one could be notified of, where the queue has no place for them: one object each.

use std::time::SystemTime;

use aws_sdk_s3::primitives::ByteStream;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Store;
use super::error::{Failure, Kind};
use crate::job::outcome::{JobError, Problem, RetryPolicy};

/// Where they lie in the bucket.
pub const DIRECTORY: &str = "dead/";

/// Of a SHA-256, in hexadecimal.
const HASH_DIGITS: usize = 64;

/// What `dead/{hash of the body}.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadMessage {
    pub error: Problem,
    /// The kind of the queue, and its own name for the message.
    pub source: String,
    pub message_id: String,
    /// As it came; what is not UTF-8 has replacement characters.
    pub body: String,
}

/// An object in [`DIRECTORY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadKey {
    pub key: String,
    /// When it was written last, by the bucket's clock.
    pub kept: Option<SystemTime>,
}

/// Whether a key is one of [`Store::keep_dead`]: what else lies there is someone else's.
fn is_dead(key: &str) -> bool {
    let name = key.strip_prefix(DIRECTORY).and_then(|name| name.strip_suffix(".json"));
    name.is_some_and(|name| name.len() == HASH_DIGITS && name.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

impl Store {
    /// Keeps a message. The key depends on the body alone, so that a repeated delivery writes the same object again.
    ///
    /// # Errors
    /// [`JobError::Storage`]; then the message is kept nowhere.
    pub async fn keep_dead(&self, body: &[u8], message: &DeadMessage) -> Result<String, JobError> {
        let name = base16ct::lower::encode_string(&Sha256::digest(body));
        let key = format!("{DIRECTORY}{name}.json");
        let json = serde_json::to_vec_pretty(message)
            .map_err(|error| JobError::Internal { problem: format!("{key} could not be written as JSON ({error})") })?;
        let put = self.client.put_object().bucket(&self.settings.bucket).key(&key).content_type("application/json");
        match put.body(ByteStream::from(json)).send().await {
            Ok(_) => Ok(key),
            Err(error) => Err(Failure::new(error).storage(self.request("s3:PutObject", &key))),
        }
    }

    /// All that are kept now.
    ///
    /// # Errors
    /// [`JobError::Storage`].
    pub async fn dead_keys(&self) -> Result<Vec<DeadKey>, JobError> {
        let list = self.client.list_objects_v2().bucket(&self.settings.bucket).prefix(DIRECTORY);
        let mut pages = list.into_paginator().send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| Failure::new(error).storage(self.request("s3:ListBucket", DIRECTORY)))?;
            found.extend(page.contents().iter().filter_map(|object| {
                let kept = object.last_modified().and_then(|modified| SystemTime::try_from(*modified).ok());
                object.key().filter(|key| is_dead(key)).map(|key| DeadKey { key: key.to_owned(), kept })
            }));
        }
        Ok(found)
    }

    /// The message under this key; none where it has been removed.
    ///
    /// # Errors
    /// [`JobError::Storage`], also where something else lies there.
    pub async fn dead_message(&self, key: &str) -> Result<Option<DeadMessage>, JobError> {
        let bucket = &self.settings.bucket;
        let got = match self.client.get_object().bucket(bucket).key(key).send().await.map_err(Failure::new) {
            Ok(got) => got,
            Err(failure) if failure.kind == Kind::NoKey => return Ok(None),
            Err(failure) => return Err(failure.storage(self.request("s3:GetObject", key))),
        };
        let json = self.collected(got.body, bucket, key).await?;
        serde_json::from_slice(&json).map(Some).map_err(|error| JobError::Storage {
            problem: format!("s3://{bucket}/{key} is no message that was kept here ({error}); remove it, or move it elsewhere"),
            retry_policy: RetryPolicy::Terminal,
            cause: Some(error.into()),
        })
    }

    /// Removes a message that was kept.
    ///
    /// # Errors
    /// [`JobError::Storage`]; then it is still there.
    pub async fn remove_dead(&self, key: &str) -> Result<(), JobError> {
        let delete = self.client.delete_object().bucket(&self.settings.bucket).key(key).send();
        delete.await.map(drop).map_err(|error| Failure::new(error).storage(self.request("s3:DeleteObject", key)))
    }
}
