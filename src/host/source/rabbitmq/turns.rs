//! What the broker is asked one at a time: one that says nothing is waited for once, by all who wait for their turn.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use super::fault::Fault;

/// The place of what is used in turns.
pub(super) struct Turns<T> {
    place: Mutex<Option<T>>,
    /// Turns in which the broker said nothing.
    unanswered: AtomicU64,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { place: Mutex::default(), unanswered: AtomicU64::default() }
    }
}

impl<T> Turns<T> {
    /// Does `turn` when those before it are done, or not at all where the broker said nothing to one of them.
    pub(super) async fn take<A>(&self, turn: impl AsyncFnOnce(&mut Option<T>) -> Result<A, Fault>) -> Result<A, Fault> {
        let before = self.unanswered.load(Ordering::Relaxed);
        let mut place = self.place.lock().await;
        if self.unanswered.load(Ordering::Relaxed) != before {
            return Err(Fault::silent("the broker did not answer what it was asked before"));
        }
        let done = turn(&mut place).await;
        if done.as_ref().is_err_and(|fault| fault.silent) {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
        done
    }
}
