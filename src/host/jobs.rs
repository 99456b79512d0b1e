//! What this node knows of its jobs: waiting, running, ended; for `/jobs/{id}`, for cancelling, for refusing doubles.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::job::{Job, JobId};

/// How many jobs that do not run here are remembered; older ones are known by their record in the bucket alone.
const REMEMBERED: usize = 10_000;

/// A job that waits longer than this may have ended on another host of the same queue: handed in again, it is queued again,
/// and if it is done already, that is a replay.
const SURELY_WAITING: Duration = Duration::from_mins(10);

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
    /// Deliveries so far.
    pub attempt: u32,
    /// `{code, message, field}` of the last attempt that failed.
    pub error: Option<Value>,
    /// Of the request ([`Job::fingerprint`]).
    pub fingerprint: String,
    /// Object key prefix of its images and record.
    pub prefix: String,
    /// Whose job it is ([`Job::tenant`]).
    pub tenant: Option<String>,
    /// Somebody asked for it to be cancelled.
    pub cancelled: bool,
    /// When it was handed in, or started.
    pub since: Instant,
}

/// What became of a job that was to be accepted.
#[derive(Debug, Clone, PartialEq)]
pub enum Acceptance {
    /// Not known here, or it had failed before: put it into the queue.
    New,
    /// The same request waits or runs already, or is complete.
    Known(JobStatus),
    /// The id belongs to another request.
    Conflict,
}

/// What became of a wish to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    /// It was waiting: it will not be started.
    Waiting,
    /// It runs: it stops before its next denoising step.
    Running,
    /// It had ended like this.
    Ended(State),
    Unknown,
}

/// The jobs of this node. Every call is short: it may be made from any task.
#[derive(Debug, Default)]
pub struct Jobs {
    registry: Mutex<JobRegistry>,
    /// Jobs on their way into the queue.
    sending: AtomicU64,
}

/// A job on its way into the queue, until this is dropped.
#[derive(Debug)]
pub struct Sending<'a> {
    sending: &'a AtomicU64,
    before: u64,
}

impl Sending<'_> {
    /// Those that were on their way when this one came.
    #[must_use]
    pub fn before(&self) -> u64 {
        self.before
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.sending.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
struct JobRegistry {
    job_statuses: HashMap<String, JobStatus>,
    /// When each was entered, the oldest first; an id may stand here again.
    entered: VecDeque<(String, Instant)>,
}

impl Jobs {
    /// Enters a job that a caller has handed in, before it is put into the queue.
    pub fn accept(&self, job: &Job) -> Acceptance {
        let mut registry = self.registry();
        match registry.job_statuses.get(job.id.as_str()) {
            Some(known) if known.fingerprint != job.fingerprint => return Acceptance::Conflict,
            Some(known) if known.state == State::Queued && known.since.elapsed() > SURELY_WAITING => {}
            Some(known) if !matches!(known.state, State::Failed | State::Cancelled) => return Acceptance::Known(known.clone()),
            _ => {}
        }
        registry.enter(job, State::Queued, 0);
        Acceptance::New
    }

    /// Counts a job that is about to be sent.
    pub fn sending(&self) -> Sending<'_> {
        Sending { before: self.sending.fetch_add(1, Ordering::SeqCst), sending: &self.sending }
    }

    /// Other jobs of the same tenant that wait, as far as this node knows.
    #[must_use]
    pub fn waiting_of_tenant(&self, job: &Job) -> u64 {
        let registry = self.registry();
        let others = registry.job_statuses.iter().filter(|(id, _)| *id != job.id.as_str());
        others.filter(|(_, known)| known.state == State::Queued && known.tenant == job.tenant).count() as u64
    }

    /// Takes back an [`Acceptance::New`] whose job did not get into the queue.
    pub fn withdraw(&self, id: &JobId) {
        self.registry().job_statuses.remove(id.as_str());
    }

    /// A handler has the job. False when it was cancelled before: then it must not be started.
    pub fn start(&self, job: &Job, attempt: u32) -> bool {
        let mut registry = self.registry();
        if registry
            .job_statuses
            .get(job.id.as_str())
            .is_some_and(|known| known.cancelled && known.fingerprint == job.fingerprint)
        {
            return false;
        }
        registry.enter(job, State::Running, attempt);
        true
    }

    /// `percent`: 0 to 100.
    pub fn progress(&self, id: &str, percent: u8) {
        // A late word of a job that was put back is none of the next run's.
        if let Some(known) = self.registry().job_statuses.get_mut(id).filter(|known| known.state == State::Running) {
            known.progress_percent = known.progress_percent.max(percent.min(100));
        }
    }

    /// The job waits again; `error` says why.
    pub fn requeue(&self, id: &str, error: Option<Value>) {
        if let Some(known) = self.registry().job_statuses.get_mut(id) {
            known.state = State::Queued;
            known.progress_percent = 0;
            known.error = error.or(known.error.take());
        }
    }

    /// The job has ended: complete, failed or cancelled.
    pub fn end(&self, id: &str, state: State, error: Option<Value>) {
        let mut registry = self.registry();
        let Some(known) = registry.job_statuses.get_mut(id) else { return };
        known.state = state;
        known.error = error;
        if state == State::Complete {
            known.progress_percent = 100;
        }
    }

    /// Marks the job as cancelled; whoever runs it looks at [`JobStatus::cancelled`] or is told by the caller of this.
    pub fn cancel(&self, id: &str) -> Cancelling {
        let mut registry = self.registry();
        let Some(known) = registry.job_statuses.get_mut(id) else { return Cancelling::Unknown };
        if known.state.has_ended() {
            return Cancelling::Ended(known.state);
        }
        known.cancelled = true;
        if known.state == State::Running { Cancelling::Running } else { Cancelling::Waiting }
    }

    pub fn job_status(&self, id: &str) -> Option<JobStatus> {
        self.registry().job_statuses.get(id).cloned()
    }

    /// A panic under the lock leaves the job registry as it was: every change is one assignment.
    fn registry(&self) -> MutexGuard<'_, JobRegistry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl JobRegistry {
    fn enter(&mut self, job: &Job, state: State, attempt: u32) {
        let job_status = JobStatus {
            state,
            progress_percent: 0,
            attempt,
            error: None,
            fingerprint: job.fingerprint.clone(),
            prefix: job.output.prefix.clone(),
            tenant: job.tenant.clone(),
            cancelled: false,
            since: Instant::now(),
        };
        self.entered.push_back((job.id.as_str().to_owned(), job_status.since));
        self.job_statuses.insert(job.id.as_str().to_owned(), job_status);
        while self.entered.len() > REMEMBERED {
            let Some((oldest, since)) = self.entered.pop_front() else { return };
            // It may have been entered again, or be running.
            let known = self.job_statuses.get(&oldest);
            if known.is_some_and(|known| known.since == since && known.state != State::Running) {
                self.job_statuses.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::request::Defaults;

    fn job(id: &str) -> Job {
        let defaults = serde_json::json!({
            "model": "tiny-sd", "steps": 20, "guidance_scale": 4.0, "scheduler": "ddim", "width": 64, "height": 64, "seed": 42,
            "prefix": "",
        });
        let defaults: Defaults = serde_json::from_value(defaults).unwrap();
        Job::from_json(serde_json::json!({ "job_id": id, "prompt": "a mug" }).to_string().as_bytes(), &defaults).unwrap()
    }

    #[test]
    fn only_so_many_jobs_are_remembered_and_none_that_runs_is_forgotten() {
        let jobs = Jobs::default();
        assert!(jobs.start(&job("running"), 1));
        for number in 0..REMEMBERED + 5 {
            assert_eq!(jobs.accept(&job(&format!("job-{number}"))), Acceptance::New);
        }
        assert_eq!(jobs.job_status("job-0"), None);
        assert!(jobs.job_status(&format!("job-{}", REMEMBERED + 4)).is_some());
        assert_eq!(jobs.job_status("running").unwrap().state, State::Running);
        assert!(jobs.registry().job_statuses.len() <= REMEMBERED + 1);
    }

    #[test]
    fn an_id_has_one_request() {
        let jobs = Jobs::default();
        let (first, mut other) = (job("a"), job("a"));
        other.fingerprint = "another".into();
        assert_eq!(jobs.accept(&first), Acceptance::New);
        assert_eq!(jobs.accept(&other), Acceptance::Conflict);
        assert!(matches!(jobs.accept(&first), Acceptance::Known(_)));
        assert_eq!(jobs.cancel("a"), Cancelling::Waiting);
        assert!(!jobs.start(&first, 1), "it was cancelled");
        jobs.end("a", State::Cancelled, None);
        assert_eq!(jobs.accept(&first), Acceptance::New, "and may be handed in again");
        assert!(jobs.start(&first, 1));
    }
}
