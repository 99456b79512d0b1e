//! What a disk does not do now: jobs that go back to `waiting/` as soon as it lets them, and what an operator is told until then.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tracing::Instrument as _;

use super::files::Directory;
use super::name::Name;
use super::{Spool, Waiting};
use crate::backoff::Backoff;
use crate::host::source::SourceError;

const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// A job on its way back from `running/`.
#[derive(Clone)]
pub(super) struct Returning {
    pub(super) action: &'static str,
    pub(super) running: Name,
    pub(super) waiting: Waiting,
    /// What is to be noted of its end, or that nothing is; none: what is noted stays.
    pub(super) note: Option<Option<String>>,
}

impl Spool {
    /// Nobody else would bring the job back: what the disk does not do now is tried again until it does.
    pub(super) async fn put_back(&self, returning: Returning) -> Result<(), SourceError> {
        let moved = self.try_to_put_back(&returning).await;
        if matches!(moved, Err(SourceError::Unavailable { .. })) {
            tokio::spawn(self.clone().put_back_later(returning).in_current_span());
        }
        moved
    }

    async fn put_back_later(self, returning: Returning) {
        let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
        loop {
            tokio::time::sleep(backoff.next_pause()).await;
            match self.try_to_put_back(&returning).await {
                Ok(()) => return tracing::info!("a job that the disk had held back waits again"),
                Err(error @ SourceError::Unavailable { .. }) => tracing::debug!(%error, "a job still cannot be put back"),
                Err(error) => return tracing::warn!(%error, "a job could not be put back"),
            }
        }
    }

    async fn try_to_put_back(&self, returning: &Returning) -> Result<(), SourceError> {
        let Returning { action, running, waiting, note } = returning.clone();
        let to = waiting.name.clone();
        let moving = self.on_disk(action, move |files| {
            if let Some(ended) = note {
                files.note_end(&running, ended.as_deref())?;
            }
            files.rename((Directory::Running, &running), (Directory::Waiting, &to))
        });
        moving.await?;
        self.index().insert(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// A disk that did not do what it was asked is in trouble until a file can be written, moved and removed.
    pub(super) fn report(&self, error: &SourceError) {
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
        let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
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
    pub(super) fn unwritable(&self) -> MutexGuard<'_, Option<String>> {
        self.unwritable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
