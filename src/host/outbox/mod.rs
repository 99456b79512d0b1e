//! The notifications of jobs that have ended: sent next to what handlers do, and again until they are taken.
//!
//! - A receiver that fails delays nobody else ([`receivers`]): what is on its way at once is bounded, and one that is down is left alone.
//! - What is not taken waits: in memory where its source lets the message be kept in flight, else back at its source with an [`EndedJob`].
//! - Before a job is reported as failed its record is looked for, in every round after the first.

mod breaker;
mod pending;
pub mod receivers;
mod round;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::pending::{Later, NotSent, Written};
use self::receivers::{Limits, Receivers};
use super::ended::{End, EndedJob};
use super::in_flight::InFlight;
use super::notification_sender::NotificationSender;
use super::source::{Message, SourceError};
use super::store_health::StoreHealth;
use crate::backoff::pause;
use crate::job::notification::Notification;
use crate::notify;
use crate::protocol::deferral::DeferReason;
use crate::store::Store;

/// What waiting jobs may take of the memory, together.
const MEMORY_KIB: usize = 128 << 10;
/// What each counts for at least: a thousand of them wait here at most.
const MIN_COST_KIB: usize = 128;
/// A message is kept in flight no longer than this: SQS takes it back after 12 hours.
const MAX_HOLD: Duration = Duration::from_hours(11);
/// No pause is longer: no source waits longer in one piece (SQS delays a copy so long at most), and what was waited for is counted.
const MAX_PAUSE: Duration = Duration::from_mins(15);
/// What the host has not sent when it ends comes to the next one soon.
const DRAIN_PAUSE: Duration = Duration::from_secs(1);

/// Rounds of this host that have to fail after the time of a notification is up.
const LATE_ROUNDS: u32 = 3;
/// Messages whose late rounds are counted; beyond, all begin anew.
const MAX_LATE: usize = 10_000;

/// What it works with.
#[derive(Clone)]
pub struct Services {
    pub sender: NotificationSender,
    pub store_health: StoreHealth,
}

/// When notifications are tried again, and for how long.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    /// The first rounds follow each other after these pauses.
    first_rounds: u32,
    first_backoff: (Duration, Duration),
    /// All others after these.
    backoff: (Duration, Duration),
    give_up_after: Duration,
}

/// How sending ended.
pub enum Sent {
    /// Everything was taken, or nobody wants it.
    All(EndedJob),
    /// It was not taken for too long; the text says what was the matter last.
    GivenUp(EndedJob, String),
    /// The source has the message again.
    Deferred(EndedJob),
    /// The job was taken for complete, and it has no record: it is one like any other.
    NoRecord,
}

/// Sends notifications; clones share bounds and what is under way.
#[derive(Clone)]
pub struct Outbox {
    services: Services,
    receivers: Receivers,
    schedule: Schedule,
    memory: Arc<Semaphore>,
    /// Of each source that bounds its unacknowledged messages, by its name.
    windows: Arc<Mutex<HashMap<&'static str, Window>>>,
    waiting: Arc<AtomicUsize>,
    /// Late rounds of messages, by their identity.
    late: Arc<Mutex<HashMap<String, u32>>>,
    /// The host ends: what waits goes back to its source.
    pub draining: CancellationToken,
    /// It ends now: what is under way as well.
    pub force_shutdown: CancellationToken,
}

/// How many messages of a source may be here only because their notifications are being sent.
struct Window {
    all: Arc<Semaphore>,
    /// Those among them whose receivers have not answered yet.
    doubtful: Arc<Semaphore>,
}

/// Counts a job that waits, until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A job of which no one can be told is kept with the reason: why it failed, or why no one hears that it is complete.
fn nobody(mut ended: EndedJob, problem: String) -> Sent {
    if ended.end == End::Complete {
        return Sent::GivenUp(ended, problem);
    }
    ended.end = End::DeadLetter;
    Sent::All(ended)
}

impl Schedule {
    fn new(settings: &notify::Settings, backoff: (Duration, Duration)) -> Self {
        let ms = Duration::from_millis;
        Self {
            first_rounds: settings.max_attempts.max(1),
            first_backoff: (ms(settings.initial_backoff_ms), ms(settings.max_backoff_ms)),
            backoff,
            give_up_after: settings.give_up_after(),
        }
    }

    /// The pause after round number `rounds`, counted from 1.
    fn pause(&self, rounds: u32) -> Duration {
        if rounds < self.first_rounds {
            return pause(self.first_backoff.0, self.first_backoff.1, rounds);
        }
        pause(self.backoff.0, self.backoff.1, rounds - self.first_rounds + 1)
    }
}

impl Outbox {
    /// `backoff`: the first and the max pause of the host between attempts.
    #[must_use]
    pub fn new(
        services: Services,
        settings: &notify::Settings,
        backoff: (Duration, Duration),
        force_shutdown: CancellationToken,
    ) -> Self {
        Self {
            services,
            receivers: Receivers::new(Limits::from(settings)),
            schedule: Schedule::new(settings, backoff),
            memory: Arc::new(Semaphore::new(MEMORY_KIB)),
            windows: Arc::default(),
            waiting: Arc::default(),
            late: Arc::default(),
            draining: CancellationToken::new(),
            force_shutdown,
        }
    }

    /// Jobs that have ended and wait here until their callers know.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Receivers that are left alone, each with how many it stands for.
    #[must_use]
    pub fn open_breakers(&self) -> Vec<(String, usize)> {
        self.receivers.open()
    }

    /// The bucket with the records.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.services.sender.store
    }

    /// Sends a job's notifications until all are taken, or cannot wait here any more. `written`: those that a handler wrote.
    pub async fn send(&self, in_flight: &InFlight, mut ended: EndedJob, written: Option<Vec<Notification>>) -> Sent {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(self.waiting.clone());
        ended.since(SystemTime::now());
        let mut written = written.map(Written::now);
        let mut memory = None;
        let mut since = Instant::now();
        loop {
            let round = tokio::select! {
                round = self.round(in_flight, &mut ended, &mut written) => round,
                () = self.force_shutdown.cancelled() => Err(NotSent::Later(Later::default())),
            };
            ended.waited(since.elapsed());
            since = Instant::now();
            let later = match round {
                Ok(()) => return Sent::All(ended),
                Err(NotSent::NoRecord) => return Sent::NoRecord,
                Err(NotSent::Nobody(problem)) => return nobody(ended, problem),
                Err(NotSent::Later(later)) => later,
            };
            let is_over = ended.age(SystemTime::now()) >= self.schedule.give_up_after;
            if is_over && later.may_give_up && self.has_tried_enough(&in_flight.message.identity) {
                return Sent::GivenUp(ended, later.problem);
            }
            let pause = self.schedule.pause(ended.rounds).max(later.asked).min(MAX_PAUSE);
            tracing::warn!(
                problem = later.problem,
                rounds = ended.rounds,
                pause_ms = pause.as_millis() as u64,
                "a notification waits to be sent again"
            );
            if self.draining.is_cancelled() || !self.may_hold(in_flight, written.as_ref(), &mut memory) {
                let pause = if self.draining.is_cancelled() { pause.min(DRAIN_PAUSE) } else { pause };
                if self.defer(in_flight, &mut ended, pause).await {
                    return Sent::Deferred(ended);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.receiver_changes(&later) => {}
                () = self.draining.cancelled(), if !self.draining.is_cancelled() => {}
            }
        }
    }

    /// A clock that was set ahead, or a host that was away for days, must not take the last chance of a receiver that is well by now:
    /// some rounds of this host come after the time is up, with pauses between them, wherever the message waits meanwhile.
    fn has_tried_enough(&self, message: &str) -> bool {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let rounds = late.get(message).copied().unwrap_or_default() + 1;
        if rounds >= LATE_ROUNDS {
            late.remove(message);
            return true;
        }
        if late.len() >= MAX_LATE {
            late.clear();
        }
        late.insert(message.to_owned(), rounds);
        false
    }

    /// Sends notifications of a job that no queue has, for as many rounds as a handler would make of its own.
    pub async fn send_unqueued(&self, mut notifications: Vec<Notification>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(self.waiting.clone());
        for rounds in 1.. {
            let later = tokio::select! {
                later = self.attempt_each(&mut notifications) => later,
                () = self.force_shutdown.cancelled() => return,
            };
            let Some(later) = later else { return };
            if rounds >= self.schedule.first_rounds || self.draining.is_cancelled() {
                tracing::warn!(problem = later.problem, rounds, "a notification was not delivered");
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(self.schedule.pause(rounds)) => {}
                () = self.draining.cancelled() => {}
            }
        }
    }

    /// Whether a message may wait here: where its source does not bound what is in flight, and there is memory for it.
    fn may_hold(&self, in_flight: &InFlight, written: Option<&Written>, memory: &mut Option<OwnedSemaphorePermit>) -> bool {
        if in_flight.source.window().is_some() || in_flight.message.received.elapsed() > MAX_HOLD {
            return false;
        }
        if memory.is_none() {
            // The body, what was read out of it, and the record that it came in.
            let bytes = 4 * in_flight.message.body.len() + written.map_or(0, Written::bytes);
            let cost_kib = (bytes >> 10).clamp(MIN_COST_KIB, MEMORY_KIB);
            *memory = self.memory.clone().try_acquire_many_owned(u32::try_from(cost_kib).unwrap_or(u32::MAX)).ok();
        }
        memory.is_some()
    }

    /// Gives the message back to its source for a while. False where it has to wait here after all.
    async fn defer(&self, in_flight: &InFlight, ended: &mut EndedJob, pause: Duration) -> bool {
        let mut carried = ended.clone();
        carried.waited(pause);
        let message = Message { ended: Some(carried.clone()), ..in_flight.message.clone() };
        in_flight.release().await;
        match in_flight.source.defer(&message, pause, DeferReason::NotificationUndelivered).await {
            Ok(()) => {
                *ended = carried;
                true
            }
            Err(error @ (SourceError::Lost { .. } | SourceError::Gone { .. })) => {
                tracing::warn!(message_id = message.id, %error, "a message whose notification waits was not deferred");
                true
            }
            Err(error) => {
                tracing::warn!(message_id = message.id, %error, "a message whose notification waits could not be deferred yet");
                if self.draining.is_cancelled() {
                    // Counted, so that whoever gets it looks for the record, and for the note of a failure. Whatever the queue says: it has it.
                    let _ = in_flight.source.retry(&message, Duration::ZERO).await;
                    return true;
                }
                in_flight.keep_again();
                false
            }
        }
    }

    /// Resolves when it may be worth another try.
    async fn receiver_changes(&self, later: &Later) {
        match &later.receiver {
            Some(name) => self.receivers.closes(name).await,
            None => std::future::pending().await,
        }
    }

    /// The right to be here only because of a notification: half of what may be here at all is for jobs that are to be run. Half of
    /// the rest is for receivers that answer.
    fn room(&self, in_flight: &InFlight, doubtful: bool) -> Result<[Option<OwnedSemaphorePermit>; 2], NotSent> {
        let Some(window) = in_flight.source.window() else { return Ok([None, None]) };
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let rooms = windows.entry(in_flight.source.name()).or_insert_with(|| Window {
            all: Arc::new(Semaphore::new((window / 2).max(1))),
            doubtful: Arc::new(Semaphore::new((window / 4).max(1))),
        });
        let enter = |room: &Arc<Semaphore>| room.clone().try_acquire_owned().map(Some);
        let entered = enter(&rooms.all).and_then(|one| Ok([one, if doubtful { enter(&rooms.doubtful)? } else { None }]));
        entered.map_err(|_| NotSent::Later(Later { problem: "others are being sent".into(), ..Later::default() }))
    }
}
