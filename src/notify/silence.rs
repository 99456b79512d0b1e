//! Receivers that did not answer a progress notification lately: they get no more of those for a while, since each keeps a job waiting.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long such a receiver gets no progress.
const PAUSE: Duration = Duration::from_mins(1);
/// More are not remembered.
const MAX_RECEIVERS: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Silence(Mutex<BTreeMap<String, Instant>>);

impl Silence {
    pub(super) fn note(&self, receiver: String) {
        let mut since = self.since();
        since.retain(|_, since| since.elapsed() < PAUSE);
        if since.len() < MAX_RECEIVERS {
            since.insert(receiver, Instant::now());
        }
    }

    pub(super) fn is_silent(&self, receiver: &str) -> bool {
        self.since().get(receiver).is_some_and(|since| since.elapsed() < PAUSE)
    }

    /// A panic under the lock leaves the map as it was: every change is one call.
    fn since(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
