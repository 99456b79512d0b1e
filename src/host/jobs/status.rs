//! What this node knows of one job.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::Value;

/// In a queue that other hosts read too, a job that waits longer than this may have ended at one of them: handed in again it is queued
/// again. If it waits still, that is a replay, or a conflict that the bucket decides.
pub(super) const SURELY_WAITING: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Accepted, and waiting in the queue or for another attempt.
    Queued,
    Running,
    Complete,
    Failed,
    Cancelled,
}

impl State {
    #[must_use]
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Cancelled)
    }
}

/// What is known of one job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobStatus {
    pub state: State,
    /// 0 to 100.
    pub progress_percent: u8,
    /// The denoising step that is done, and of how many; none while it is not known, as of a job that runs at another host.
    pub step: Option<(u32, u32)>,
    /// Deliveries so far.
    pub attempt: u32,
    /// `{code, message, field}` of the last attempt that failed.
    pub error: Option<Value>,
    /// Of the request ([`crate::job::Job::fingerprint`]).
    pub fingerprint: String,
    /// Object key prefix of its images and record.
    pub prefix: String,
    /// Whose job it is ([`crate::job::Job::tenant`]).
    pub tenant: Option<String>,
    /// Someone asked for it to be cancelled.
    pub cancelled: bool,
    /// Its caller is being notified that it failed or was cancelled: a caller who hands it in again has to wait for that.
    pub ending: bool,
    /// When a handler died that had done all steps: its record may have been on the way.
    pub died_storing: Option<Instant>,
    /// When it ended, by this machine's clock.
    pub ended_at: Option<SystemTime>,
    /// When it was handed in, or started.
    pub since: Instant,
}

impl JobStatus {
    /// Whether it may have ended without this node hearing of it.
    pub(in crate::host) fn may_be_over(&self, is_shared: bool) -> bool {
        is_shared && self.state == State::Queued && self.since.elapsed() > SURELY_WAITING
    }

    /// A wish to cancel is over with the job that it was meant for.
    pub(super) fn is_to_be_cancelled(&self) -> bool {
        self.cancelled && !self.state.has_ended()
    }

    /// Another try under the same id is another job: with the same request or a corrected one.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Failed | State::Cancelled)
    }
}
