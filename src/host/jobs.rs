//! What this node knows of its jobs: waiting, running, ended; for `/jobs/{id}`, for cancelling, for refusing doubles.

mod registry;
mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize as _;
use serde_json::Value;
use tokio::sync::watch;

use self::registry::{Changing, JobRegistry};
pub use self::status::{JobStatus, State};
use super::acceptance::NotAccepted;
use super::previews::Previews;
use super::sending::{SendResult, SendWatch};
use crate::clock::later;
use crate::job::Job;
use crate::job::outcome::Problem;

/// Between the clocks of a queue and of this machine, once one is counted from the other.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// What became of a job that was to be accepted.
#[derive(Debug)]
pub enum Acceptance {
    /// No queue has it as far as is known here: the caller puts it into one, and says how that ended.
    New(Sending),
    /// Another request is putting a job of this id into the queue: its result says more.
    UnderWay(SendWatch),
    /// A queue has the same request, or it is complete.
    Known(JobStatus),
    /// It is known, and no queue holds it for the caller who asks now; the text says why.
    InProgress(&'static str),
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
    /// Sees a new value when anything in the registry may have changed.
    changes: watch::Sender<()>,
    pub previews: Arc<Previews>,
}

/// An `/infer` caller's hold on a job id; dropping it lets go.
#[derive(Debug)]
pub struct Claim {
    jobs: Arc<Jobs>,
    id: String,
    /// When it was entered as waiting.
    since: Instant,
    /// What was known of the id before.
    before: Option<JobStatus>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut registry = self.jobs.change();
        registry.claims.remove(&self.id);
        let known = registry.job_statuses.get(&self.id);
        if known.is_some_and(|known| known.since == self.since && known.state == State::Queued) {
            // It was never started: what is so is what was before.
            match self.before.take() {
                Some(before) => registry.job_statuses.insert(self.id.clone(), before),
                None => registry.job_statuses.remove(&self.id),
            };
        }
    }
}

/// The right to put a job into the queue. Dropped without [`Self::ended`], it was not put there.
#[derive(Debug)]
pub struct Sending {
    jobs: Arc<Jobs>,
    job: Box<Job>,
    begun: Instant,
    before: u64,
    waiting_of_tenant: u64,
    result: watch::Sender<Option<SendResult>>,
}

impl Sending {
    /// Jobs that were on their way into the queue when this one came.
    #[must_use]
    pub fn before(&self) -> u64 {
        self.before
    }

    /// Other jobs of the same tenant that waited or were on their way into the queue when this one came.
    #[must_use]
    pub fn waiting_of_tenant(&self) -> u64 {
        self.waiting_of_tenant
    }

    /// What the queue said.
    pub fn ended(self, result: SendResult) {
        self.jobs.sent(&self.job, self.begun, &result);
        self.result.send_replace(Some(result));
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.result.borrow().is_none() {
            self.jobs.sent(&self.job, self.begun, &Err(NotAccepted::Draining));
        }
    }
}

impl Jobs {
    /// Looks whether a job that a caller hands in is to be put into the queue. What is known here as waiting or running is only
    /// said to be in a queue if one has confirmed it and will bring it to an end of its own. `is_shared`: other hosts read the queue.
    pub fn accept(self: &Arc<Self>, job: &Job, is_shared: bool) -> Acceptance {
        let mut registry = self.change();
        let id = job.id.as_str();
        if let Some(under_way) = registry.sending.get(id) {
            return Acceptance::UnderWay(under_way.clone());
        }
        let claimed = registry.claims.contains_key(id);
        match registry.job_statuses.get_mut(id) {
            Some(known) if known.fingerprint != job.fingerprint && !known.has_failed() && !known.may_be_over(is_shared) => {
                return Acceptance::Conflict;
            }
            Some(known) if known.state == State::Complete => return Acceptance::Known(known.clone()),
            _ if claimed => return Acceptance::InProgress("the job runs for a caller of /infer, and no queue has it"),
            // The wish to cancel was meant for the job that has ended, and the queue may deliver this one before it confirms it.
            Some(known) if known.has_failed() => known.cancelled = false,
            Some(known) if known.ending => return Acceptance::InProgress("the job's caller is being notified that it failed"),
            Some(known) if known.cancelled && known.state == State::Running => {
                return Acceptance::InProgress("the job is being cancelled");
            }
            Some(known) if known.may_be_over(is_shared) => known.cancelled = false,
            Some(known) => {
                // The queue has it still, and the caller who hands it in again wants it: the wish to cancel is taken back.
                known.cancelled = false;
                return Acceptance::Known(known.clone());
            }
            None => {}
        }
        let (result, under_way) = SendWatch::of(job);
        let before = registry.sending.len() as u64;
        let waiting_of_tenant = registry.waiting_of_tenant(job);
        registry.sending.insert(id.to_owned(), under_way);
        let begun = Instant::now();
        Acceptance::New(Sending { jobs: self.clone(), job: Box::new(job.clone()), begun, before, waiting_of_tenant, result })
    }

    /// What is putting a job of this id into the queue at the moment.
    #[must_use]
    pub fn under_way(&self, id: &str) -> Option<SendWatch> {
        self.registry().sending.get(id).cloned()
    }

    /// Other jobs of the same tenant that wait or are on their way into the queue, as far as this node knows.
    #[must_use]
    pub fn waiting_of_tenant(&self, job: &Job) -> u64 {
        self.registry().waiting_of_tenant(job)
    }

    /// How putting a job into the queue ended that was begun at `begun`.
    fn sent(&self, job: &Job, begun: Instant, result: &SendResult) {
        let mut registry = self.change();
        registry.sending.remove(job.id.as_str());
        // The queue may have delivered it before it confirmed it.
        let known = registry.job_statuses.get(job.id.as_str());
        let is_newer = known.is_some_and(|known| known.fingerprint == job.fingerprint && known.since >= begun);
        if result.is_ok() && !is_newer {
            registry.enter(job, State::Queued, 0);
        }
    }

    /// Takes a job for a caller who waits for it, unless this node has it already. `is_shared`: other hosts read the queue.
    ///
    /// # Errors
    /// [`Acceptance::Conflict`] or [`Acceptance::InProgress`], which says why.
    pub fn claim(self: &Arc<Self>, job: &Job, is_shared: bool) -> Result<Claim, Acceptance> {
        let mut registry = self.change();
        let id = job.id.as_str();
        let known = registry.job_statuses.get(id).filter(|known| !known.state.has_ended() && !known.may_be_over(is_shared));
        let claim = registry.claims.get(id);
        let fingerprint = claim.or(known.map(|known| &known.fingerprint));
        if fingerprint.is_some_and(|fingerprint| *fingerprint != job.fingerprint) {
            return Err(Acceptance::Conflict);
        }
        if claim.is_some() {
            return Err(Acceptance::InProgress("the job runs for another caller of /infer"));
        }
        if registry.sending.contains_key(id) || known.is_some() {
            return Err(Acceptance::InProgress("a queue has the job already; GET /jobs/{job_id} says how it is"));
        }
        registry.claims.insert(id.to_owned(), job.fingerprint.clone());
        let before = registry.job_statuses.get(id).cloned();
        // A wish to cancel was meant for the job that has ended.
        let since = registry.enter(job, State::Queued, 0);
        Ok(Claim { jobs: self.clone(), id: id.to_owned(), since, before })
    }

    /// A handler has the job. False when it was cancelled before: then it must not be started, and its caller is to be notified.
    pub fn start(&self, job: &Job, attempt: u32) -> bool {
        let mut registry = self.change();
        let is_sent_anew = registry.sending.contains_key(job.id.as_str());
        match registry.job_statuses.get_mut(job.id.as_str()) {
            Some(known) if known.is_to_be_cancelled() && !is_sent_anew && known.fingerprint == job.fingerprint => {
                known.ending = true;
                return false;
            }
            // Another request under the id of a job that lives: the bucket decides, and what is known here stays the first one's.
            Some(known) if known.fingerprint != job.fingerprint && !known.has_failed() => return true,
            _ => {}
        }
        registry.enter(job, State::Running, attempt);
        true
    }

    /// The job's caller is about to be notified of its end.
    pub fn ending(&self, id: &str) {
        if let Some(known) = self.change().job_statuses.get_mut(id) {
            known.ending = true;
        }
    }

    /// A denoising step of `steps` is done. Generation is nine tenths of the way; what is left is storing and notifying.
    pub fn progress(&self, id: &str, step: u32, steps: u32) {
        let percent = u8::try_from(u64::from(step) * 90 / u64::from(steps.max(1))).unwrap_or(90).min(90);
        // A late word of a job that was put back is none of the next run's.
        if let Some(known) = self.change().job_statuses.get_mut(id).filter(|known| known.state == State::Running) {
            known.progress_percent = known.progress_percent.max(percent);
            known.step = Some((step.max(known.step.map_or(0, |(before, _)| before)), steps));
        }
    }

    /// Its handler died, perhaps while it stored the record.
    pub fn died(&self, id: &str) {
        if let Some(known) = self.change().job_statuses.get_mut(id)
            && known.step.is_some_and(|(step, steps)| step >= steps)
        {
            known.died_storing = Some(Instant::now());
        }
    }

    /// The job waits again; `error` says why.
    pub fn requeue(&self, id: &str, error: Option<Value>) {
        if let Some(known) = self.change().job_statuses.get_mut(id) {
            known.state = State::Queued;
            known.progress_percent = 0;
            known.step = None;
            known.error = error.or(known.error.take());
            // A caller who may have been notified that the job was cancelled is not notified of anything else later.
            known.ending &= known.cancelled;
        }
    }

    /// The job has ended: complete, failed or cancelled.
    pub fn end(&self, id: &str, state: State, error: Option<Value>) {
        let mut registry = self.change();
        let Some(known) = registry.job_statuses.get_mut(id) else { return };
        known.state = state;
        known.error = error;
        known.ending = false;
        known.ended_at = Some(SystemTime::now());
        if state == State::Complete {
            known.progress_percent = 100;
        }
    }

    /// What its caller was told, where the same request failed here after a message of it was `sent`: that one asked for the job that
    /// has ended since, not for another try.
    #[must_use]
    pub fn told_since(&self, job: &Job, sent: SystemTime) -> Option<Problem> {
        let registry = self.registry();
        let known = registry.job_statuses.get(job.id.as_str()).filter(|known| known.fingerprint == job.fingerprint)?;
        let is_told = known.has_failed() && known.ended_at? > later(sent, CLOCK_STEP);
        Problem::deserialize(known.error.as_ref().filter(|_| is_told)?).ok()
    }

    /// Marks the job as cancelled; its runner looks at [`JobStatus::cancelled`] or is notified by the caller of this.
    pub fn cancel(&self, id: &str) -> Cancelling {
        let mut registry = self.change();
        let Some(known) = registry.job_statuses.get_mut(id) else { return Cancelling::Unknown };
        if known.state.has_ended() {
            return Cancelling::Ended(known.state);
        }
        known.cancelled = true;
        if known.state == State::Running { Cancelling::Running } else { Cancelling::Waiting }
    }

    /// Whether what is known by the job's id is this very request.
    #[must_use]
    pub fn knows(&self, job: &Job) -> bool {
        self.registry().job_statuses.get(job.id.as_str()).is_some_and(|known| known.fingerprint == job.fingerprint)
    }

    /// Nothing is known any more of this request.
    pub fn forget(&self, job: &Job) {
        let mut registry = self.change();
        if registry.job_statuses.get(job.id.as_str()).is_some_and(|known| known.fingerprint == job.fingerprint) {
            registry.job_statuses.remove(job.id.as_str());
        }
    }

    /// What was handed in or started last, the newest first.
    #[must_use]
    pub fn newest(&self, most: usize) -> Vec<(String, JobStatus)> {
        let registry = self.registry();
        let current = registry.entered.iter().rev().filter_map(|(id, since)| {
            let known = registry.job_statuses.get(id).filter(|known| known.since == *since)?;
            Some((id.clone(), known.clone()))
        });
        current.take(most).collect()
    }

    /// Whether the job waits or runs, and someone asked for it to be cancelled.
    #[must_use]
    pub fn is_to_be_cancelled(&self, id: &str) -> bool {
        self.registry().job_statuses.get(id).is_some_and(JobStatus::is_to_be_cancelled)
    }

    pub fn job_status(&self, id: &str) -> Option<JobStatus> {
        self.registry().job_statuses.get(id).cloned()
    }

    /// Sees a new value when anything that is known of any job may have changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// How many follow what is known of jobs.
    #[must_use]
    pub fn followers(&self) -> usize {
        self.changes.receiver_count()
    }

    fn change(&self) -> Changing<'_> {
        Changing { registry: self.registry(), changes: &self.changes }
    }

    /// A panic under the lock leaves the job registry as it was: every change is one assignment.
    fn registry(&self) -> MutexGuard<'_, JobRegistry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
