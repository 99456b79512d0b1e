//! Small JSON objects that are written once and never changed: of all who try, one writes, and the others see what it wrote.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::{ByteStream, DateTime};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::Store;
use super::error::{Failure, Kind};
use crate::job::outcome::{JobError, RetryPolicy};

/// What such an object is, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct What {
    is: &'static str,
    /// What the caller chose, and with it the object's key.
    chosen: &'static str,
}

/// How often an unreadable object is read again, after twice the pause each time.
const REREADS: u32 = 3;
const FIRST_REREAD: Duration = Duration::from_millis(200);

pub(super) const FAILED: What = What { is: "note that a job failed", chosen: "job_id" };
pub(super) const BLOCKED: What = What { is: "note that a job is not allowed", chosen: "job_id" };
pub(super) const RECORD: What = What { is: "record of a job", chosen: "job_id" };
const CLAIM: What = What { is: "claim of a key", chosen: "Idempotency-Key" };

/// What was found, and how long ago the bucket got it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dated<T> {
    pub value: T,
    /// By the bucket's clock when it was written, and this machine's now.
    pub age: Duration,
}

/// What a read came to.
pub(super) enum Read<T> {
    Found(Dated<T>),
    /// `at`: when the server said so, by its own clock.
    Absent {
        at: Option<SystemTime>,
    },
}

impl<T> Read<T> {
    pub(super) fn found(self) -> Option<Dated<T>> {
        match self {
            Self::Found(dated) => Some(dated),
            Self::Absent { .. } => None,
        }
    }
}

impl Store {
    /// Claims a caller's `Idempotency-Key` for `claim`, unless it stands for something already: then that is returned. Two
    /// claims must never be equal, else both have it. `generation`: counted from 0; a claim whose owner is gone is followed by one of
    /// the next generation, which again one alone gets.
    ///
    /// # Errors
    /// [`JobError::Storage`] when the bucket cannot be asked.
    pub async fn claim<T>(&self, idempotency_key: &str, generation: u32, claim: &T) -> Result<Option<Dated<T>>, JobError>
    where
        T: Serialize + DeserializeOwned + PartialEq,
    {
        self.put_once(CLAIM, &claim_key(idempotency_key, generation), claim).await
    }

    /// Changes a claim; only its owner may.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub async fn change_claim(&self, idempotency_key: &str, generation: u32, claim: &impl Serialize) -> Result<(), JobError> {
        self.put_json(&claim_key(idempotency_key, generation), claim).await
    }

    /// Writes `value`, over whatever is there.
    pub(super) async fn put_json(&self, key: &str, value: &impl Serialize) -> Result<(), JobError> {
        let put = self.client.put_object().bucket(&self.settings.bucket).key(key).content_type("application/json");
        let put = put.body(ByteStream::from(json(key, value)?)).send().await;
        let put = put.map_err(|error| Failure::new(error).storage(self.request("s3:PutObject", key)))?;
        self.request("s3:PutObject", key).of_s3(put.e_tag())
    }

    /// Takes a claim back; only its owner may.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub async fn drop_claim(&self, idempotency_key: &str, generation: u32) -> Result<(), JobError> {
        let key = claim_key(idempotency_key, generation);
        let delete = self.client.delete_object().bucket(&self.settings.bucket).key(&key).send().await;
        delete.map(drop).map_err(|error| Failure::new(error).storage(self.request("s3:DeleteObject", &key)))
    }

    /// None: `value` was written, or was there already just so.
    pub(super) async fn put_once<T>(&self, what: What, key: &str, value: &T) -> Result<Option<Dated<T>>, JobError>
    where
        T: Serialize + DeserializeOwned + PartialEq,
    {
        const MAX_CONFLICTS: u32 = 5;
        let body = json(key, value)?;
        // In place of the condition: of this process one writes at a time, and looks before.
        let _turn = if self.settings.conditional_writes { None } else { Some(self.unconditional.lock().await) };
        if !self.settings.conditional_writes
            && let Some(existing) = self.read::<T>(what, key).await?.found()
        {
            return Ok(Some(existing).filter(|existing| existing.value != *value));
        }
        let mut conflicts = 0;
        loop {
            let put = self.client.put_object().bucket(&self.settings.bucket).key(key).content_type("application/json");
            let put = put.set_if_none_match(self.settings.conditional_writes.then(|| "*".to_owned()));
            let put = put.body(ByteStream::from(body.clone())).send().await;
            let failure = match put.map_err(Failure::new) {
                Ok(put) => return self.request("s3:PutObject", key).of_s3(put.e_tag()).map(|()| None),
                Err(failure) => failure,
            };
            if failure.kind != Kind::Condition {
                return Err(failure.storage(self.request("s3:PutObject", key)));
            }
            match self.read(what, key).await?.found() {
                // An attempt that went through although its answer was lost.
                Some(existing) if existing.value == *value => return Ok(None),
                Some(existing) => return Ok(Some(existing)),
                // 409: another writer was at work and did not finish.
                None if conflicts < MAX_CONFLICTS => conflicts += 1,
                None => return Err(failure.storage(self.request("s3:PutObject", key))),
            }
        }
    }

    /// An object that cannot be read is read again: what stands between here and the bucket may answer for it once. One that
    /// stays unreadable is final.
    pub(super) async fn read<T: DeserializeOwned>(&self, what: What, key: &str) -> Result<Read<T>, JobError> {
        let mut pause = FIRST_REREAD;
        for _ in 0..REREADS {
            match self.read_once(what, key).await {
                Err(error) if error.retry_policy() == RetryPolicy::Terminal => {
                    tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "an object is read again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                read => return read,
            }
        }
        self.read_once(what, key).await
    }

    async fn read_once<T: DeserializeOwned>(&self, what: What, key: &str) -> Result<Read<T>, JobError> {
        let found = self.client.get_object().bucket(&self.settings.bucket).key(key).send().await;
        let object = match found.map_err(Failure::new) {
            Ok(object) => object,
            Err(failure) if failure.kind == Kind::NoKey => return Ok(Read::Absent { at: failure.at }),
            Err(failure) => return Err(failure.storage(self.request("s3:GetObject", key))),
        };
        self.request("s3:GetObject", key).of_s3(object.e_tag())?;
        let age = object.last_modified.and_then(age).unwrap_or_default();
        let bytes = self.collected(object.body, &self.settings.bucket, key).await?;
        let value = serde_json::from_slice(&bytes).map_err(|error| JobError::Storage {
            problem: format!(
                "s3://{}/{key} is no {} ({error}); remove it, or choose another {}",
                self.settings.bucket, what.is, what.chosen
            ),
            retry_policy: RetryPolicy::Terminal,
            cause: Some(error.into()),
        })?;
        Ok(Read::Found(Dated { value, age }))
    }
}

fn claim_key(idempotency_key: &str, generation: u32) -> String {
    let name = base16ct::lower::encode_string(&Sha256::digest(idempotency_key));
    match generation {
        0 => format!("idempotency/{name}.json"),
        generation => format!("idempotency/{name}.{generation}.json"),
    }
}

fn json(key: &str, value: &impl Serialize) -> Result<Vec<u8>, JobError> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| JobError::Internal { problem: format!("{key} could not be written as JSON ({error})") })
}

/// None: later than now.
fn age(modified: DateTime) -> Option<Duration> {
    SystemTime::now().duration_since(SystemTime::try_from(modified).ok()?).ok()
}
