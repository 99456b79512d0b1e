//! Work on the spool's disk, away from the threads that answer; and what an operator is told while the disk does not do it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::files::Files;
use crate::backoff::Backoff;
use crate::host::source::SourceError;

const DELETED: &str = "the directory was deleted while the host runs; its jobs are lost: start the host again";
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// The spool's directories; clones are the same.
#[derive(Clone)]
pub(super) struct Disk {
    files: Arc<Files>,
    /// What was not done, until it can be.
    unwritable: Arc<Mutex<Option<String>>>,
}

impl Disk {
    pub(super) fn new(files: Files) -> Self {
        Self { files: Arc::new(files), unwritable: Arc::default() }
    }

    /// For messages.
    pub(super) fn label(&self) -> String {
        self.files.label()
    }

    /// The pauses between attempts at what the disk does not do.
    pub(super) fn backoff() -> Backoff {
        Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF)
    }

    pub(super) async fn work<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
    ) -> Result<T, SourceError> {
        let files = self.files.clone();
        let done = tokio::task::spawn_blocking(move || work(&files)).await;
        let done = done.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|problem| {
            let queue = self.files.label();
            let gone = problem.kind() == io::ErrorKind::NotFound;
            let problem = problem.to_string();
            if gone && !self.files.is_there() {
                let problem = DELETED.to_owned();
                SourceError::Gone { queue, action, problem }
            } else if gone {
                SourceError::Lost { queue, action, problem }
            } else {
                SourceError::Unavailable { queue, action, problem }
            }
        });
        done.inspect_err(|error| self.report(error))
    }

    /// Why jobs cannot be kept here, while they cannot.
    pub(super) fn trouble(&self) -> Option<String> {
        let deleted = (!self.files.is_there()).then(|| format!("{}: {DELETED}", self.files.label()));
        deleted.or_else(|| self.unwritable().clone())
    }

    /// A disk that did not do what it was asked is in trouble until a file can be written, moved and removed.
    fn report(&self, error: &SourceError) {
        if !matches!(error, SourceError::Unavailable { .. }) {
            return;
        }
        let problem = error.to_string();
        if self.unwritable().replace(problem.clone()).is_none() {
            tracing::error!(problem, "the spool cannot be used as it must; jobs wait until it can");
            tokio::spawn(self.clone().until_it_is_writable());
        }
    }

    async fn until_it_is_writable(self) {
        let mut backoff = Self::backoff();
        loop {
            tokio::time::sleep(backoff.next_pause()).await;
            let files = self.files.clone();
            match tokio::task::spawn_blocking(move || files.probe()).await {
                Ok(Ok(())) => break,
                tried => tracing::debug!(?tried, "the spool still cannot be used as it must"),
            }
        }
        tracing::info!("the spool can be used again");
        *self.unwritable() = None;
    }

    /// A panic under the lock leaves nothing half done: every change is one assignment.
    fn unwritable(&self) -> MutexGuard<'_, Option<String>> {
        self.unwritable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
