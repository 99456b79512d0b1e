//! Who may be sent to now: bounds on what is on its way at once, in all and to each receiver, and a breaker for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::breaker::Breaker;
use crate::clock::later;
use crate::job::notification::{Message, Notification};
use crate::notify;

/// Receivers that are remembered; one that is well and has nothing on its way makes room for another.
const MAX_RECEIVERS: usize = 1_000;
/// How long one waits for a place before it asks to be tried later.
const PLACE_WAIT: Duration = Duration::from_secs(5);
/// A place that becomes free elsewhere is noticed as soon as this.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Open breakers that are named.
const MAX_NAMED: usize = 20;

/// The bounds; see `notify::Settings`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub sends: usize,
    pub sends_per_receiver: usize,
    pub breaker_failures: u32,
    pub breaker_max_pause: Duration,
}

impl From<&notify::Settings> for Limits {
    fn from(settings: &notify::Settings) -> Self {
        Self {
            sends: settings.max_sends,
            sends_per_receiver: settings.max_sends_per_receiver,
            breaker_failures: settings.breaker_failures,
            breaker_max_pause: Duration::from_secs(settings.breaker_max_seconds),
        }
    }
}

/// All receivers; clones are the same ones.
#[derive(Clone)]
pub(super) struct Receivers(Arc<Shared>);

struct Shared {
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    receivers: HashMap<String, Receiver>,
    /// On their way, to anybody.
    sends: usize,
    /// Of them those to receivers that have not answered yet, or failed last.
    doubtful_sends: usize,
}

struct Receiver {
    breaker: Breaker,
    sends: usize,
    has_answered: bool,
    /// Something has changed for whoever waits for a place or for the breaker.
    changed: Arc<Notify>,
}

/// Who named a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedBy {
    /// Its address stands in the configuration: it is believed to answer until it fails.
    Operator,
    /// In `callback.url`: anybody can name addresses that never answer.
    Caller,
}

impl From<&Notification> for NamedBy {
    fn from(notification: &Notification) -> Self {
        if matches!(notification.message, Message::Callback { .. }) { Self::Caller } else { Self::Operator }
    }
}

impl Receiver {
    fn is_doubtful(&self, named_by: NamedBy) -> bool {
        named_by == NamedBy::Caller && !self.has_answered || !self.breaker.is_well()
    }
}

/// The right to make one attempt. Dropped without a result, nothing is known of how it ended.
pub(super) struct Place {
    shared: Arc<Shared>,
    name: String,
    doubtful: bool,
    is_open: bool,
}

impl Receivers {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Shared { limits, table: Mutex::default() }))
    }

    /// Waits a little for a place.
    ///
    /// # Errors
    /// When to ask again.
    pub(super) async fn enter(&self, name: &str, named_by: NamedBy) -> Result<Place, Duration> {
        let deadline = later(Instant::now(), PLACE_WAIT);
        loop {
            let changed = self.changed(name);
            let notified = changed.notified();
            match self.try_enter(name, named_by) {
                Ok(place) => return Ok(place),
                Err(Some(pause)) => return Err(pause),
                Err(None) if Instant::now() >= deadline => return Err(PLACE_WAIT),
                // Woken or not, it looks again.
                Err(None) => drop(timeout(LOOK_EVERY, notified).await),
            }
        }
    }

    /// Resolves when a receiver answers again that is left alone now.
    pub(super) async fn closes(&self, name: &str) {
        if !self.is_open(name) {
            return std::future::pending().await;
        }
        let changed = self.changed(name);
        loop {
            let notified = changed.notified();
            if !self.is_open(name) {
                return;
            }
            notified.await;
        }
    }

    /// Whether it has failed last, or a caller named it and it has not answered yet.
    pub(super) fn is_doubtful(&self, name: &str, named_by: NamedBy) -> bool {
        let table = self.0.table();
        let known = table.receivers.get(name).map(|receiver| receiver.is_doubtful(named_by));
        known.unwrap_or(named_by == NamedBy::Caller)
    }

    fn is_open(&self, name: &str) -> bool {
        self.0.table().receivers.get(name).is_some_and(|receiver| receiver.breaker.is_open())
    }

    /// How many breakers are open, by receiver: the first by name, and all others as one.
    pub(super) fn open(&self) -> Vec<(String, usize)> {
        let table = self.0.table();
        let mut names: Vec<&String> =
            table.receivers.iter().filter(|(_, receiver)| receiver.breaker.is_open()).map(|(name, _)| name).collect();
        names.sort();
        let others = names.len().saturating_sub(MAX_NAMED);
        let named = names.into_iter().take(MAX_NAMED).map(|name| (name.clone(), 1));
        named.chain([("other".to_owned(), others)]).collect()
    }

    fn changed(&self, name: &str) -> Arc<Notify> {
        self.0.table().receiver(name, &self.0.limits).changed.clone()
    }

    /// `Err(None)`: when a place is free.
    fn try_enter(&self, name: &str, named_by: NamedBy) -> Result<Place, Option<Duration>> {
        let limits = self.0.limits;
        let mut table = self.0.table();
        let sends = table.sends;
        let doubtful_sends = table.doubtful_sends;
        let receiver = table.receiver(name, &limits);
        let doubtful = receiver.is_doubtful(named_by);
        // Half of the places are for those who have shown that they answer: nobody takes all by inventing host names.
        let full = sends >= limits.sends || doubtful && doubtful_sends >= limits.sends.div_ceil(2);
        if !receiver.breaker.is_open() && (full || receiver.sends >= limits.sends_per_receiver) {
            return Err(None);
        }
        if full {
            return Err(Some(PLACE_WAIT));
        }
        receiver.breaker.admit(Instant::now()).map_err(Some)?;
        receiver.sends += 1;
        table.sends += 1;
        table.doubtful_sends += usize::from(doubtful);
        drop(table);
        Ok(Place { shared: self.0.clone(), name: name.to_owned(), doubtful, is_open: true })
    }
}

impl Shared {
    /// A panic under the lock leaves numbers that are a place off at worst.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn receiver(&mut self, name: &str, limits: &Limits) -> &mut Receiver {
        if !self.receivers.contains_key(name) && self.receivers.len() >= MAX_RECEIVERS {
            let idle = |receiver: &Receiver| receiver.sends == 0 && Arc::strong_count(&receiver.changed) == 1;
            let room = self.receivers.iter().find(|(_, receiver)| idle(receiver) && receiver.breaker.is_well());
            let room = room.or_else(|| self.receivers.iter().find(|(_, receiver)| idle(receiver)));
            if let Some(room) = room.map(|(name, _)| name.clone()) {
                self.receivers.remove(&room);
            }
        }
        self.receivers.entry(name.to_owned()).or_insert_with(|| Receiver {
            breaker: Breaker::new(limits.breaker_failures, limits.breaker_max_pause),
            sends: 0,
            has_answered: false,
            changed: Arc::default(),
        })
    }
}

impl Place {
    /// The receiver has answered, whatever it thought of the notification.
    pub(super) fn answered(mut self) {
        self.leave(|receiver, name| {
            receiver.has_answered = true;
            if receiver.breaker.answered() {
                tracing::info!(receiver = name, "a receiver of notifications answers again");
            }
        });
    }

    /// There was no answer, or one that the receiver is not well.
    pub(super) fn failed(mut self, problem: &str) {
        self.leave(|receiver, name| {
            if receiver.breaker.failed(Instant::now()) {
                tracing::warn!(
                    receiver = name,
                    problem,
                    "a receiver of notifications has failed over and over; it is left alone for a while"
                );
            }
        });
    }

    fn leave(&mut self, result: impl FnOnce(&mut Receiver, &str)) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let mut table = self.shared.table();
        table.sends = table.sends.saturating_sub(1);
        table.doubtful_sends = table.doubtful_sends.saturating_sub(usize::from(self.doubtful));
        let Some(receiver) = table.receivers.get_mut(&self.name) else { return };
        receiver.sends = receiver.sends.saturating_sub(1);
        result(receiver, &self.name);
        receiver.changed.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave(|receiver, _| receiver.breaker.abandoned());
    }
}
