//! Brings messages and handlers together: what is in flight, who is free, who runs what.

pub mod acknowledge;
mod assignment;
mod direct;
mod disposition;
pub mod intake;
mod redelivery;
mod shared;
mod slot;
mod state;
mod swaps;
mod turns;
mod unserved;
pub mod waiting;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

pub use self::assignment::Assignment;
pub use self::slot::Slot;
use self::state::State;
use super::in_flight::InFlight;
use super::job_service::{Direct, Ending, StatusSnapshot};
use super::jobs::Jobs;
use super::sharing;
use crate::protocol::deferral::DeferReason;

/// What is in flight and who does what. One lock, held for moments.
pub struct Dispatcher {
    state: Mutex<State>,
    jobs: Arc<Jobs>,
    /// Wakes the callers that wait in [`Self::take`].
    work: Notify,
    snapshot: watch::Sender<StatusSnapshot>,
    states: watch::Sender<States>,
    /// How many messages the free handlers could take beyond what is in flight.
    demand: watch::Sender<usize>,
    /// When handlers that share a device are to be decided on although nothing else happens.
    due: watch::Sender<Option<Instant>>,
    /// What each slot is to send its handler: ids of jobs to cancel.
    cancels: Vec<mpsc::UnboundedSender<String>>,
}

/// Of each model, how many of its handlers are in each state, by the state's word.
pub type States = Vec<Vec<(&'static str, usize)>>;

/// What one handler is for.
#[derive(Debug, Clone, Copy)]
pub struct HandlerPlace {
    /// The place of its model in the catalogue.
    pub model: usize,
    /// What it has of a device that it shares.
    pub share: Option<sharing::Share>,
}

/// What ends cancelled without a handler.
pub struct Cancelled {
    pub messages: Vec<InFlight>,
    /// Those whose callers wait.
    pub directs: Vec<Direct>,
}

/// What an idle handler is to do.
pub enum Next {
    Run(Assignment),
    Unload(Unloading),
}

/// Why a handler is to be unloaded.
#[derive(Debug, Clone, Copy)]
pub struct Unloading {
    /// The model for whose handler it makes room.
    pub wanted: usize,
    /// How long it has had no job.
    pub unused: Duration,
}

/// See [`Dispatcher::reserve`].
pub struct Reservation(Arc<Dispatcher>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.change(|dispatcher| dispatcher.reserved -= 1);
    }
}

impl Dispatcher {
    /// For a handler in each of these places, each with `batch` messages at most at a time; the receivers, one per handler, bring the
    /// ids of jobs that are to be cancelled.
    #[must_use]
    pub fn new(
        places: &[HandlerPlace],
        batch: usize,
        sharing: &sharing::Settings,
        jobs: Arc<Jobs>,
    ) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<String>>) {
        let (cancels, cancelled) = places.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let state = State::new(places, batch, sharing, jobs.clone());
        let dispatcher = Self {
            snapshot: watch::Sender::new(state.snapshot()),
            states: watch::Sender::new(state.counts()),
            demand: watch::Sender::new(0),
            due: watch::Sender::new(state.sharing.due),
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
        self.change(|dispatcher| dispatcher.set(slot, state));
    }

    /// A handler has its model ready. How long others made room for it and it was loaded; none where no one had to make room.
    pub fn ready(&self, slot: usize) -> Option<Duration> {
        self.change(|dispatcher| {
            dispatcher.set(slot, Slot::Idle);
            dispatcher.sharing.swapped(slot)
        })
    }

    /// A handler ended by itself. A caller who waits for a model that is not there any more may try again.
    pub fn fell(&self, slot: usize, why: &str) {
        let withdrawn = self.change(|dispatcher| {
            dispatcher.set(slot, Slot::Down(why.to_owned()));
            dispatcher.withdraw_directs(|state, direct| state.sharing.has(slot) && direct.model == state.models[slot])
        });
        for direct in withdrawn {
            // A caller that is gone needs no answer.
            let _ = direct.answer.send(Ending::Crashed(why.to_owned()));
        }
    }

    /// Waits until a handler may be started: at once, unless it shares its device.
    pub async fn enter(&self, slot: usize) {
        self.change(|dispatcher| dispatcher.enter(slot));
        self.until(|dispatcher| (dispatcher.slots[slot] == Slot::Starting).then_some(())).await;
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

    /// Waits for work for an idle handler and marks it busy with it, or until it is to be unloaded. Never resolves once the host drains.
    pub async fn take(&self, slot: usize) -> Next {
        self.until(|state| {
            if let Some(wanted) = state.sharing.wanted_by(slot).filter(|_| state.slots[slot] == Slot::Unloading) {
                let unused = state.sharing.unused(slot);
                return Some(Next::Unload(Unloading { wanted: state.models[wanted], unused }));
            }
            let assignment = state.assign(slot)?;
            state.share_devices();
            self.publish(state);
            // What waits may be blocked by it.
            self.work.notify_waiters();
            Some(Next::Run(assignment))
        })
        .await
    }

    /// Waits until a handler is idle while messages of jobs that run already, or that another model's handlers are to do, keep others from
    /// it, and returns those messages; they are the caller's to put back.
    pub async fn blocked(&self) -> Vec<(InFlight, DeferReason)> {
        self.until(|state| Some(state.blocked()).filter(|blocked| !blocked.is_empty())).await
    }

    /// Waits until jobs are cancelled for which a model would be loaded only to say so, and takes them out.
    pub async fn cancelled(&self) -> Cancelled {
        self.until(|state| {
            let messages = state.withdraw_cancelled();
            let directs = state.withdraw_directs(|state, direct| state.jobs.is_to_be_cancelled(direct.job.id.as_str()));
            let is_any = !messages.is_empty() || !directs.is_empty();
            is_any.then(|| {
                self.publish(state);
                Cancelled { messages, directs }
            })
        })
        .await
    }

    /// Decides anew whenever something is to be decided although nothing else happens.
    pub async fn keep_time(&self) {
        let mut due = self.due.subscribe();
        loop {
            let next = *due.borrow_and_update();
            tokio::select! {
                // The sender lives as long as this does.
                _ = due.changed() => {}
                () = until(next) => self.change(|_| ()),
            }
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
        drop(state);
        // One that waits may be taken out.
        self.work.notify_waiters();
    }

    /// How many handlers of each model are in each state.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<States> {
        self.states.subscribe()
    }

    #[must_use]
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        state.share_devices();
        self.publish(&state);
        self.work.notify_waiters();
        result
    }

    /// Asks again whenever something has changed, until there is an answer.
    async fn until<T>(&self, answer: impl Fn(&mut State) -> Option<T>) -> T {
        loop {
            let work = self.work.notified();
            tokio::pin!(work);
            work.as_mut().enable();
            if let Some(answer) = answer(&mut self.state()) {
                return answer;
            }
            work.await;
        }
    }

    /// Under the lock, so that what was published last is what is so.
    fn publish(&self, state: &State) {
        self.snapshot.send_if_modified(|old| replaced(old, state.snapshot()));
        self.states.send_if_modified(|old| replaced(old, state.counts()));
        self.demand.send_if_modified(|old| replaced(old, state.demand()));
        self.due.send_if_modified(|old| replaced(old, state.sharing.due));
    }

    /// A panic under the lock leaves nothing half done: every change is a few assignments.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn replaced<T: PartialEq>(old: &mut T, new: T) -> bool {
    let changed = *old != new;
    *old = new;
    changed
}
