//! What has failed for good, where each kind of queue keeps it: looked through, sent again, removed.

use std::time::SystemTime;

use async_trait::async_trait;
use serde_json::Value;

use super::SourceError;
use crate::job::JobId;

/// A message that failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The queue's own name for the message.
    pub id: String,
    /// Of the body, where that can be read.
    pub job_id: Option<JobId>,
    /// Why it is here, where whoever moved it says so.
    pub reason: Option<String>,
    /// When the job was sent, where the queue knows; in a bucket, when the message was kept there.
    pub sent: Option<SystemTime>,
    pub body: Vec<u8>,
}

/// What becomes of a dead letter that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It stays.
    Keep,
    /// It goes back to the queue of jobs, with all its attempts. Interrupted in between, it is in both, never in none.
    SendAgain,
    /// It is gone for good.
    Remove,
}

/// Who says what becomes of the letters.
pub trait Operator: Send {
    fn decide(&mut self, letter: &DeadLetter) -> Decision;

    /// It has been sent again, or removed.
    fn done(&mut self, _letter: &DeadLetter) {}

    /// It could not be, and is still there.
    fn failed(&mut self, _letter: &DeadLetter, _error: &SourceError) {}
}

/// Where the messages of one queue are that failed for good.
#[async_trait]
pub trait DeadLetters: Send + Sync {
    /// `sqs`, `rabbitmq`, `spool` or `bucket`.
    fn source(&self) -> &'static str;

    /// Its address or name, for messages.
    fn place(&self) -> &str;

    /// Shows each letter that is here now, and none that comes meanwhile for long, to `operator`, once, and does as it says before the next one.
    ///
    /// Those that stay can be received by nobody else until this returns.
    ///
    /// # Errors
    /// [`SourceError`]; what was done until then is done, and all others are still here.
    async fn go_through(&self, operator: &mut dyn Operator) -> Result<(), SourceError>;
}

impl DeadLetter {
    /// The body says whose it is.
    #[must_use]
    pub fn new(id: String, body: Vec<u8>) -> Self {
        let job_id = serde_json::from_slice::<Value>(&body).ok();
        let job_id = job_id.as_ref().and_then(|body| JobId::new(body["job_id"].as_str()?).ok());
        Self { id, job_id, reason: None, sent: None, body }
    }

    /// Whether it is the one that a person means by `name`: the id of its job, or its own.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        self.id == name || self.job_id.as_ref().is_some_and(|id| id.as_str() == name)
    }
}
