//! `Idempotency-Key`: what a key stands for is kept in the bucket, so that it holds for all hosts and outlasts this process.
//!
//! - A key stands for one request; another request under it is a conflict.
//! - It is claimed before its job is put into a queue, so that of all hosts one sends it. The others wait for that, and answer
//!   with the same job.
//! - While the job waits or runs, the same request is told to come back; when it is complete, it gets the same result.
//! - A host that dies with a claim blocks the key for [`LEASE`] at most. A job that failed can be sent again.

use std::sync::LazyLock;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::Http;
use super::problem::Problem;
use crate::clock::later;
use crate::host::jobs::State;
use crate::job::Job;

pub(super) const NAME: &str = "idempotency-key";

/// How long a claim counts whose job no queue has yet: longer than any host takes to put one there.
const LEASE: Duration = Duration::from_mins(1);
/// How long after it was put into a queue a job is sure to be there or beyond.
const FRESH: Duration = Duration::from_mins(1);
/// How long a host that knows nothing of a job believes that another brings it to its end. Later the request is taken again: a
/// job that is done by then costs no generation.
const TRUST: Duration = Duration::from_mins(15);
/// How long a request waits for another host's send.
const SEND_LIMIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Owners of one key that may have died one after the other.
const MAX_GENERATIONS: u32 = 1_000;

/// Tells the claims of this process from those of others.
static PROCESS: LazyLock<String> = LazyLock::new(|| Uuid::now_v7().to_string());

/// A key as its caller chose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(String);

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    fingerprint: String,
    job_id: String,
    /// Tells claims of the same request apart, and begins with the process that made it.
    nonce: String,
    /// None: an earlier release wrote it, and nothing is known of its job.
    #[serde(default)]
    stage: Option<Stage>,
}

/// How far the owner of a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    Sending,
    Sent,
    /// The queue did not take the job: the key is free.
    Free,
}

/// Whose key it is now.
pub(super) enum Ownership {
    /// This request's: it is to put the job into the queue, and to say how that ended.
    Own(Owned),
    /// This node knows the job, or is putting it into the queue for another request.
    Here,
    /// Another host put the job into its queue a moment ago.
    Sent,
    /// Another host has the job, or is still sending it.
    Elsewhere,
}

/// A claim of ours.
pub(super) struct Owned {
    key: Key,
    generation: u32,
    claim: Claim,
}

/// What this node knows of a job.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Nothing,
    Alive,
    Failed,
}

impl Key {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

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

    /// Claims the key for this request, or waits for the host that has it and is putting the job into its queue.
    ///
    /// # Errors
    /// A conflict when the key stands for another request; unavailable when the bucket cannot be asked.
    pub(super) async fn claim(&self, http: &Http, job: &Job) -> Result<Ownership, Problem> {
        let end = later(Instant::now(), SEND_LIMIT);
        let mut generation = 0;
        let mut has_failed_here = false;
        while generation < MAX_GENERATIONS {
            let own = Claim {
                fingerprint: job.fingerprint.clone(),
                job_id: job.id.to_string(),
                nonce: format!("{}/{}", *PROCESS, Uuid::now_v7()),
                stage: Some(Stage::Sending),
            };
            let Some(before) = Box::pin(self.ask(http.store.claim(&self.0, generation, &own))).await? else {
                return Ok(Ownership::Own(Owned { key: self.clone(), generation, claim: own }));
            };
            let Claim { fingerprint, job_id, nonce, stage } = &before.value;
            if (fingerprint, job_id) != (&own.fingerprint, &own.job_id) {
                return Err(reused(job_id));
            }
            let known = known(http, job);
            match stage {
                _ if known == Known::Alive => return Ok(Ownership::Here),
                Some(Stage::Sending) if before.age < LEASE => {
                    if Instant::now() >= end {
                        return Ok(Ownership::Elsewhere);
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                // Its failure is known here: this request is another try, unless another host has it already.
                Some(Stage::Sent) if known == Known::Failed && (!has_failed_here || nonce.starts_with(PROCESS.as_str())) => {
                    has_failed_here = true;
                    generation += 1;
                }
                Some(Stage::Sent) if before.age < FRESH => return Ok(Ownership::Sent),
                Some(Stage::Sent) if before.age < TRUST => return Ok(Ownership::Elsewhere),
                _ => generation += 1,
            }
        }
        Err(Problem::unavailable("storage_failed", "this Idempotency-Key was claimed too often; choose another"))
    }

    /// Bounds what asks the bucket.
    async fn ask<T>(&self, asking: impl Future<Output = Result<T, crate::job::outcome::JobError>>) -> Result<T, Problem> {
        match tokio::time::timeout(SEND_LIMIT, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "an Idempotency-Key could not be looked up");
                Err(Problem::unavailable("storage_failed", &error.to_string()))
            }
            Err(_) => Err(Problem::unavailable("storage_failed", "the store did not answer in time")),
        }
    }
}

impl Owned {
    /// Whether the key had an owner before.
    pub(super) fn follows_another(&self) -> bool {
        self.generation > 0
    }

    /// The queue has the job: whoever comes with the key is told so. Where the bucket cannot be told, the claim ends by itself.
    pub(super) async fn sent(self, http: &Http) {
        self.change(http, Stage::Sent).await;
    }

    /// No queue has the job: the next who comes with the key tries again.
    pub(super) async fn free(self, http: &Http) {
        if let Err(error) = http.store.drop_claim(&self.key.0, self.generation).await {
            // The function works without the permission to delete.
            tracing::debug!(%error, "a claim could not be deleted");
            self.change(http, Stage::Free).await;
        }
    }

    async fn change(self, http: &Http, stage: Stage) {
        let claim = Claim { stage: Some(stage), ..self.claim };
        if let Err(error) = http.store.change_claim(&self.key.0, self.generation, &claim).await {
            tracing::warn!(%error, "the claim of an Idempotency-Key could not be changed: it counts for {} s", LEASE.as_secs());
        }
    }
}

fn known(http: &Http, job: &Job) -> Known {
    let jobs = &http.job_service.jobs;
    match jobs.job_status(job.id.as_str()).filter(|known| known.fingerprint == job.fingerprint) {
        _ if jobs.under_way(job.id.as_str()).is_some_and(|sending| sending.is_of(job)) => Known::Alive,
        Some(known) if matches!(known.state, State::Failed | State::Cancelled) => Known::Failed,
        // Another host may have brought it to an end that this one did not hear of.
        Some(known) if known.may_be_over(http.job_service.queue.is_shared()) => Known::Nothing,
        Some(_) => Known::Alive,
        None => Known::Nothing,
    }
}

fn reused(job_id: &str) -> Problem {
    let message = format!(
        "this Idempotency-Key stands for another request (job_id {job_id}); send that request again, or choose another key"
    );
    Problem::new(StatusCode::CONFLICT, "idempotency_key_reused", &message).field("Idempotency-Key")
}
