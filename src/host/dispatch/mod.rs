//! Brings messages and handlers together: what is in flight, who is free, who runs what.

pub mod acknowledge;
mod direct;
mod disposition;
pub mod intake;
mod redelivery;
mod slot;
pub mod waiting;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, mpsc, watch};

pub use self::slot::Slot;
use super::in_flight::InFlight;
use super::job_service::{Direct, Model, StatusSnapshot};
use super::jobs::Jobs;
use crate::job::trace::Trace;

/// What one handler is to do next.
pub enum Assignment {
    /// Messages of one source, for one event.
    Messages(Vec<InFlight>),
    /// A job whose caller waits for the answer.
    Direct(Direct),
}

impl Assignment {
    /// Jobs in it, those that cannot be read included.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Messages(in_flight) => in_flight.len(),
            Self::Direct(_) => 1,
        }
    }

    /// What the Runtime API says of an invocation's trace: that of its first message. Each record has its own next to.
    #[must_use]
    pub fn trace(&self) -> Option<Trace> {
        match self {
            Self::Messages(in_flight) => in_flight.first()?.message.trace,
            Self::Direct(direct) => direct.job.trace,
        }
    }

    /// The ids of the jobs in it, as far as they could be read.
    #[must_use]
    pub fn job_ids(&self) -> Vec<String> {
        match self {
            Self::Messages(in_flight) => in_flight
                .iter()
                .filter(|in_flight| in_flight.job.is_ok())
                .map(|in_flight| in_flight.job_id().to_owned())
                .collect(),
            Self::Direct(direct) => vec![direct.job.id.as_str().to_owned()],
        }
    }
}

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

struct State {
    /// Messages of one event at most.
    batch: usize,
    slots: Vec<Slot>,
    messages: VecDeque<InFlight>,
    /// Messages that are looked up before they may be started.
    reserved: usize,
    directs: VecDeque<Direct>,
    draining: bool,
    /// The store is away: no message is started.
    paused: bool,
    /// A handler has been ready: one that ends is started again while jobs wait.
    was_ready: bool,
    /// Why the last start failed, where none has succeeded.
    failure: Option<String>,
}

impl Dispatcher {
    /// For this many handlers, each with `batch` messages at most at a time; the receivers, one a handler, bring the ids of jobs that are to be cancelled.
    #[must_use]
    pub fn new(handlers: usize, batch: usize, jobs: Arc<Jobs>) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<String>>) {
        let (cancels, cancelled) = (0..handlers).map(|_| mpsc::unbounded_channel()).unzip();
        let state = State {
            batch,
            slots: vec![Slot::Starting; handlers],
            messages: VecDeque::new(),
            reserved: 0,
            directs: VecDeque::new(),
            draining: false,
            paused: false,
            was_ready: false,
            failure: None,
        };
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
            match &state {
                Slot::Idle => dispatcher.was_ready = true,
                Slot::Down(why) => dispatcher.failure = Some(why.clone()),
                Slot::Starting | Slot::Busy(_) => {}
            }
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

    /// Waits until a handler is idle while messages of jobs that run already keep its source from giving others, and returns
    /// those messages; they are the caller's to put back.
    pub async fn blocked(&self) -> Vec<InFlight> {
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

    /// How many handlers are in each state.
    #[must_use]
    pub fn states(&self) -> [(&'static str, usize); 4] {
        let state = self.state();
        ["starting", "idle", "busy", "down"].map(|word| (word, state.slots.iter().filter(|slot| slot.as_str() == word).count()))
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

impl State {
    fn assign(&mut self, slot: usize) -> Option<Assignment> {
        if self.draining {
            return None;
        }
        let assignment = if let Some(direct) = self.directs.pop_front() {
            Assignment::Direct(direct)
        } else {
            Assignment::Messages(self.batch()?)
        };
        self.slots[slot] = Slot::Busy(assignment.job_ids());
        Some(assignment)
    }

    /// The next message, and others that may share its event; no more than leaves as many for every other idle handler.
    fn batch(&mut self) -> Option<Vec<InFlight>> {
        let most = self.startable().div_ceil(self.idle().max(1)).min(self.batch);
        let next = self.messages.iter().position(|in_flight| !self.runs(in_flight))?;
        let mut batch = vec![self.messages.remove(next)?];
        while batch.len() < most {
            let next = self
                .messages
                .iter()
                .position(|in_flight| !self.runs(in_flight) && batch.iter().all(|member| member.shares_event_with(in_flight)));
            let Some(next) = next else { break };
            batch.extend(self.messages.remove(next));
        }
        Some(batch)
    }

    /// Where nothing can be started although a handler is idle: the messages of sources whose window is half full of them.
    fn blocked(&mut self) -> Vec<InFlight> {
        if self.draining || self.idle() == 0 || self.startable() > 0 {
            return Vec::new();
        }
        let fills = self.messages.iter().map(|in_flight| {
            let same_source = self.messages.iter().filter(|other| Arc::ptr_eq(&other.source, &in_flight.source));
            in_flight.source.window().is_some_and(|window| same_source.count() >= window.div_ceil(2))
        });
        let blocks: Vec<bool> = fills.collect();
        let mut blocked = Vec::new();
        for (in_flight, blocks) in std::mem::take(&mut self.messages).into_iter().zip(blocks) {
            if blocks {
                blocked.push(in_flight);
            } else {
                self.messages.push_back(in_flight);
            }
        }
        blocked
    }

    /// Two deliveries of one job must not generate at the same time: the second waits, and is a replay then.
    fn runs(&self, in_flight: &InFlight) -> bool {
        let Ok(job) = &in_flight.job else { return false };
        self.running().any(|id| id == job.id.as_str()) || self.directs.iter().any(|direct| direct.job.id == job.id)
    }

    fn running(&self) -> impl Iterator<Item = &String> {
        self.slots.iter().flat_map(|slot| match slot {
            Slot::Busy(ids) => ids.as_slice(),
            _ => &[],
        })
    }

    fn idle(&self) -> usize {
        self.slots.iter().filter(|slot| **slot == Slot::Idle).count()
    }

    fn startable(&self) -> usize {
        self.messages.iter().filter(|in_flight| !self.runs(in_flight)).count()
    }

    fn free(&self) -> usize {
        self.idle().saturating_sub(self.directs.len() + self.startable())
    }

    fn demand(&self) -> usize {
        if self.draining || self.paused {
            return 0;
        }
        (self.idle().saturating_sub(self.directs.len()) * self.batch).saturating_sub(self.startable() + self.reserved)
    }

    fn snapshot(&self) -> StatusSnapshot {
        let model = match &self.failure {
            _ if self.slots.iter().any(|slot| matches!(slot, Slot::Idle | Slot::Busy(_))) => Model::Hot,
            Some(why) if !self.was_ready => Model::Failed(why.clone()),
            _ => Model::Loading,
        };
        StatusSnapshot {
            model,
            free: self.free(),
            running: self.running().cloned().collect(),
            in_flight: self.messages.len() + self.directs.len(),
            draining: self.draining,
        }
    }
}
