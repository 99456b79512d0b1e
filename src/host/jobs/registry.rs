//! The registry of one node's jobs, and the way to change it.

use std::collections::{HashMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;
use std::time::Instant;

use tokio::sync::watch;

use super::status::{JobStatus, State};
use crate::host::sending::SendWatch;
use crate::job::Job;

/// How many jobs that do not run here are remembered; older ones are known by their record in the bucket alone.
pub(super) const REMEMBERED: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct JobRegistry {
    pub(super) job_statuses: HashMap<String, JobStatus>,
    /// When each was entered, the oldest first; an id may stand here again.
    pub(super) entered: VecDeque<(String, Instant)>,
    /// Jobs that are being put into the queue: no queue has confirmed them yet.
    pub(super) sending: HashMap<String, SendWatch>,
    /// Jobs that run for the caller of `/infer`, each with its fingerprint: no queue has them.
    pub(super) claims: HashMap<String, String>,
}

/// The registry in the hands of someone who changes it: those who follow a job look when it is let go.
pub(super) struct Changing<'a> {
    pub(super) registry: MutexGuard<'a, JobRegistry>,
    pub(super) changes: &'a watch::Sender<()>,
}

impl Deref for Changing<'_> {
    type Target = JobRegistry;

    fn deref(&self) -> &JobRegistry {
        &self.registry
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut JobRegistry {
        &mut self.registry
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.changes.send_replace(());
    }
}

impl JobRegistry {
    pub(super) fn waiting_of_tenant(&self, job: &Job) -> u64 {
        let id = job.id.as_str();
        let sent = self.sending.iter().filter(|(other, sending)| *other != id && sending.is_of_tenant(job)).count();
        let queued = self.job_statuses.iter().filter(|(other, known)| {
            // What is sent anew counts once.
            *other != id && known.state == State::Queued && known.tenant == job.tenant && !self.sending.contains_key(*other)
        });
        (sent + queued.count()) as u64
    }

    /// Returns when: no other entry under the id has the same moment.
    pub(super) fn enter(&mut self, job: &Job, state: State, attempt: u32) -> Instant {
        let since = Instant::now();
        let before = self.job_statuses.get(job.id.as_str()).filter(|before| before.fingerprint == job.fingerprint);
        let job_status = JobStatus {
            state,
            progress_percent: 0,
            step: None,
            attempt,
            error: None,
            fingerprint: job.fingerprint.clone(),
            prefix: job.output.prefix.clone(),
            tenant: job.tenant.clone(),
            cancelled: false,
            ending: false,
            died_storing: before.and_then(|before| before.died_storing),
            ended_at: None,
            since,
        };
        self.entered.push_back((job.id.as_str().to_owned(), since));
        self.job_statuses.insert(job.id.as_str().to_owned(), job_status);
        while self.entered.len() > REMEMBERED {
            let Some((oldest, since)) = self.entered.pop_front() else { break };
            // It may have been entered again, or be running.
            let known = self.job_statuses.get(&oldest);
            if known.is_some_and(|known| known.since == since && known.state != State::Running) {
                self.job_statuses.remove(&oldest);
            }
        }
        since
    }
}
