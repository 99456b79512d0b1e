//! Why a job that a caller hands in is not accepted.

use super::source::SourceError;
use crate::job::JobId;

/// Why a job was not accepted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotAccepted {
    #[error("job_id {0} belongs to another request; send the same request again, or choose another job_id")]
    Conflict(JobId),
    /// The job is known and no queue holds it for the caller who asks now.
    #[error("{0}; come back in a moment")]
    InProgress(&'static str),
    #[error("as many jobs wait as may (host.max_waiting), and nothing more may wait: the host is busy")]
    Busy,
    /// A request that runs at once, or not at all.
    #[error(
        "every handler that could do this is busy, and this request does not wait; try again, or POST the job to where jobs wait (/generate, /tryon, /edit)"
    )]
    NoHandlerFree,
    #[error("{limit} jobs of this tenant wait already, and no more may (host.max_waiting_per_tenant)")]
    TenantBusy { limit: u64 },
    #[error("the host is shutting down")]
    Draining,
    #[error(transparent)]
    Queue(#[from] SourceError),
}
