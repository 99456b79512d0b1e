//! Brings messages and handlers together: what is in flight, who is free, who runs what.

pub mod acknowledge;
mod assignment;
mod direct;
mod disposition;
pub mod intake;
mod redelivery;
mod slot;
mod state;
mod unserved;
pub mod waiting;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, watch};

pub use self::assignment::Assignment;
pub use self::slot::Slot;
use self::state::State;
use super::in_flight::InFlight;
use super::job_service::{Direct, StatusSnapshot};
use super::jobs::Jobs;
use crate::protocol::deferral::DeferReason;

/// What is in flight and who does what. One lock, held for moments.
pub struct Dispatcher {
    state: Mutex<State>,
    jobs: Arc<Jobs>,
    /// Wakes the callers that wait in [`Self::take`].
    work: Notify,
    snapshot: watch::Sender<StatusSnapshot>,
    /// How many messages the free handlers could take beyond what is in flight.
    demand: watch::Sender<usize>,
    /// What each slot is to send its handler: ids of jobs to cancel.
    cancels: Vec<mpsc::UnboundedSender<String>>,
}

/// See [`Dispatcher::reserve`].
pub struct Reservation(Arc<Dispatcher>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.change(|dispatcher| dispatcher.reserved -= 1);
    }
}

impl Dispatcher {
    /// For a handler of each of these models, by their places in the catalogue, each with `batch` messages at most at a time; the
    /// receivers, one per handler, bring the ids of jobs that are to be cancelled.
    #[must_use]
    pub fn new(models: Vec<usize>, batch: usize, jobs: Arc<Jobs>) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<String>>) {
        let (cancels, cancelled) = models.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let state = State::new(models, batch);
        let dispatcher = Self {
            snapshot: watch::Sender::new(state.snapshot()),
            demand: watch::Sender::new(0),
            state: Mutex::new(state),
            jobs,
            work: Notify::new(),
            cancels,
        };
        (Arc::new(dispatcher), cancelled)
    }

    #[must_use]
    pub fn snapshot(&self) -> watch::Receiver<StatusSnapshot> {
        self.snapshot.subscribe()
    }

    /// How many messages could be started at once if there were any.
    #[must_use]
    pub fn demand(&self) -> watch::Receiver<usize> {
        self.demand.subscribe()
    }

    /// Counts a message that may be started soon into what waits, until the reservation is dropped.
    #[must_use]
    pub fn reserve(self: &Arc<Self>) -> Reservation {
        self.change(|dispatcher| dispatcher.reserved += 1);
        Reservation(Arc::clone(self))
    }

    /// What a handler is at now.
    pub fn set(&self, slot: usize, state: Slot) {
        self.change(|dispatcher| {
            dispatcher.note(slot, &state);
            dispatcher.slots[slot] = state;
        });
    }

    /// Takes messages in flight, all before a handler can take any, unless the host drains or has no store: then they are returned,
    /// and the caller's to put back.
    #[must_use]
    pub fn accept(&self, in_flight: Vec<InFlight>) -> Vec<InFlight> {
        self.change(|dispatcher| {
            if dispatcher.draining || dispatcher.paused {
                return in_flight;
            }
            dispatcher.messages.extend(in_flight);
            Vec::new()
        })
    }

    /// As [`Self::accept`] for a job whose caller waits.
    #[must_use]
    pub fn bring_direct(&self, direct: Direct) -> Option<Direct> {
        self.change(|dispatcher| {
            if dispatcher.draining {
                return Some(direct);
            }
            dispatcher.directs.push_back(direct);
            None
        })
    }

    /// Waits for work for an idle handler and marks it busy with it. Never resolves once the host drains.
    pub async fn take(&self, slot: usize) -> Assignment {
        loop {
            let work = self.work.notified();
            tokio::pin!(work);
            work.as_mut().enable();
            if let Some(assignment) = self.try_take(slot) {
                return assignment;
            }
            work.await;
        }
    }

    /// Waits until a handler is idle while messages of jobs that run already, or that another model's handlers are to do, keep others from
    /// it, and returns those messages; they are the caller's to put back.
    pub async fn blocked(&self) -> Vec<(InFlight, DeferReason)> {
        loop {
            let work = self.work.notified();
            tokio::pin!(work);
            work.as_mut().enable();
            let blocked = self.state().blocked();
            if !blocked.is_empty() {
                return blocked;
            }
            work.await;
        }
    }

    /// Whether messages wait rather than being started. What is in flight and not started is returned, to be put back.
    #[must_use]
    pub fn pause(&self, paused: bool) -> Vec<InFlight> {
        self.change(|dispatcher| {
            dispatcher.paused = paused;
            if paused { dispatcher.messages.drain(..).collect() } else { Vec::new() }
        })
    }

    /// Nothing is handed out any more; what is in flight and not started is returned, to be put back.
    pub fn drain(&self) -> (Vec<InFlight>, Vec<Direct>) {
        self.change(|dispatcher| {
            dispatcher.draining = true;
            (dispatcher.messages.drain(..).collect(), dispatcher.directs.drain(..).collect())
        })
    }

    /// Asks the handler that runs the job to stop it.
    pub fn cancel(&self, job_id: &str) {
        let state = self.state();
        for (slot, cancel) in state.slots.iter().zip(&self.cancels) {
            if matches!(slot, Slot::Busy(ids) if ids.iter().any(|id| id == job_id)) {
                // A slot that is gone runs nothing.
                let _ = cancel.send(job_id.to_owned());
            }
        }
    }

    /// How many handlers of each model are in each state.
    #[must_use]
    pub fn states(&self) -> Vec<[(&'static str, usize); 4]> {
        self.state().counts()
    }

    #[must_use]
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        self.publish(&state);
        self.work.notify_waiters();
        result
    }

    fn try_take(&self, slot: usize) -> Option<Assignment> {
        let mut state = self.state();
        let assignment = state.assign(slot)?;
        self.publish(&state);
        // What waits may be blocked by it.
        self.work.notify_waiters();
        Some(assignment)
    }

    /// Under the lock, so that what was published last is what is so.
    fn publish(&self, state: &State) {
        self.snapshot.send_if_modified(|old| replaced(old, state.snapshot()));
        self.demand.send_if_modified(|old| replaced(old, state.demand()));
    }

    /// A panic under the lock leaves nothing half done: every change is a few assignments.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn replaced<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}
