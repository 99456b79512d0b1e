//! `Idempotency-Key`: what a key stands for is kept in the bucket, so that it lasts longer than this process.
//!
//! - A key stands for one request; another request under it is a conflict.
//! - While the job waits or runs, the same request is asked to come back; when it is complete, it gets the same result.
//! - A claim alone promises nothing: where no job runs or is complete, the same request is accepted again.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Http;
use super::problem::Problem;
use crate::job::Job;

pub(super) const NAME: &str = "idempotency-key";

/// A key as its caller chose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(String);

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    fingerprint: String,
    job_id: String,
    /// Distinguishes claims of the same request.
    nonce: String,
}

impl Key {
    /// # Errors
    /// Says what is allowed when the header is no key.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let Some(value) = headers.get(NAME) else { return Ok(None) };
        let bytes = value.as_bytes();
        if (1..=255).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
            return Ok(Some(Self(String::from_utf8_lossy(bytes).into_owned())));
        }
        Err(Problem::invalid("Idempotency-Key", "must be 1 to 255 visible ASCII characters without spaces"))
    }

    /// Claims the key for this request. True: the same request had claimed it before.
    ///
    /// # Errors
    /// A conflict when the key stands for another request; unavailable when the bucket cannot be asked.
    pub(super) async fn claim(&self, http: &Http, job: &Job) -> Result<bool, Problem> {
        const LIMIT: Duration = Duration::from_secs(10);
        let claim =
            Claim { fingerprint: job.fingerprint.clone(), job_id: job.id.to_string(), nonce: Uuid::now_v7().to_string() };
        let claiming = tokio::time::timeout(LIMIT, http.store.claim(&self.0, &claim)).await;
        let existing = match claiming {
            Ok(Ok(existing)) => existing,
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "an Idempotency-Key could not be looked up");
                return Err(Problem::unavailable("storage_failed", &error.to_string()));
            }
            Err(_) => return Err(Problem::unavailable("storage_failed", "the store did not answer in time")),
        };
        match existing {
            None => Ok(false),
            Some(before) if (&before.fingerprint, &before.job_id) == (&claim.fingerprint, &claim.job_id) => Ok(true),
            Some(before) => {
                let message = format!(
                    "this Idempotency-Key stands for another request (job_id {}); send that request again, or choose another key",
                    before.job_id
                );
                Err(Problem::new(StatusCode::CONFLICT, "idempotency_key_reused", &message).field("Idempotency-Key"))
            }
        }
    }
}
