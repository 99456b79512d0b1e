//! Messages that wait for a better time without an attempt being counted.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tracing::Instrument as _;

use super::Dispatcher;
use super::acknowledge::{Acknowledger, Retries, done, known_id, requeue};
use crate::host::in_flight::InFlight;
use crate::protocol::deferral::DeferReason;

/// A message that waits for the store comes back so often at least: a source that is paused does not receive it anyway.
const MAX_DEFERRAL: Duration = Duration::from_secs(30);
/// And one whose own objects the store denies, so often.
const MAX_OWN_DEFERRAL: Duration = Duration::from_mins(15);

impl Acknowledger {
    /// Puts a message back that came when nothing may be started.
    pub async fn not_started(&self, in_flight: InFlight) {
        if self.store_health.is_away() {
            self.defer(&in_flight, DeferReason::StoreUnavailable, None).instrument(in_flight.span.clone()).await;
        } else {
            requeue(&in_flight).await;
        }
    }

    /// The store did not do what the job needed: the message waits, and the host receives nothing until a probe succeeds.
    pub(super) async fn wait_for_store(&self, in_flight: &InFlight, reason: DeferReason, error: Option<Value>) {
        let problem = error.as_ref().and_then(|error| error["message"].as_str()).unwrap_or("the store cannot be used");
        if !self.concerns_it_alone(in_flight) {
            self.store_health.report(problem);
        }
        self.defer(in_flight, reason, error).await;
    }

    /// Whether the store works for others while this message waits for it.
    fn concerns_it_alone(&self, in_flight: &InFlight) -> bool {
        in_flight.message.deferral.is_some_and(|before| {
            let waited_for_store = matches!(before.reason, DeferReason::StoreUnavailable | DeferReason::ResultHeld);
            waited_for_store && self.store_health.recovered_since(before.since())
        })
    }

    /// The message comes back as the same attempt: the sooner, the shorter it has waited.
    pub(super) async fn defer(&self, in_flight: &InFlight, reason: DeferReason, error: Option<Value>) {
        let before = in_flight.message.deferral;
        // Its images wait on, whatever it waits for next.
        let is_held = before.is_some_and(|before| before.reason == DeferReason::ResultHeld);
        let reason = if is_held && reason == DeferReason::StoreUnavailable { DeferReason::ResultHeld } else { reason };
        let deferral = before.filter(|before| before.reason == reason);
        let waited = deferral.map_or(Duration::ZERO, |deferral| deferral.waited(SystemTime::now()));
        let Retries { initial_backoff, max_backoff, .. } = self.retries;
        let most = if self.concerns_it_alone(in_flight) { MAX_OWN_DEFERRAL } else { MAX_DEFERRAL };
        let delay = (waited / 2).min(max_backoff).min(most).max(initial_backoff);
        tracing::warn!(reason = reason.as_str(), delay_ms = delay.as_millis() as u64, "a job waits; this is no attempt");
        self.jobs.requeue(known_id(&self.jobs, in_flight), error);
        self.metrics.deferred(in_flight.source.name(), reason.as_str());
        defer(in_flight, delay, reason).await;
    }
}

/// Puts a message off that is to come back as the same attempt.
async fn defer(in_flight: &InFlight, delay: Duration, reason: DeferReason) {
    in_flight.release().await;
    done(in_flight, "deferred", in_flight.source.defer(&in_flight.message, delay, reason).await);
}

/// Puts off what keeps other jobs from an idle handler, for as long as the host lives.
async fn defer_blocked(dispatcher: Arc<Dispatcher>, acknowledger: Acknowledger) {
    loop {
        for (in_flight, reason) in dispatcher.blocked().await {
            let before =
                in_flight.message.deferral.filter(|before| before.reason == reason && reason == DeferReason::ModelBusy);
            // A long queue for a busy model is not to be gone through over and over.
            let waited = before.map_or(Duration::ZERO, |before| before.waited(SystemTime::now()));
            let delay = (waited / 2).min(MAX_DEFERRAL).max(acknowledger.retries.initial_backoff);
            acknowledger.metrics.deferred(in_flight.source.name(), reason.as_str());
            defer(&in_flight, delay, reason).instrument(in_flight.span.clone()).await;
        }
    }
}

/// Has messages wait in their queues that cannot be started here, and models that share a device take turns at it.
pub async fn defer_unstartable(dispatcher: Arc<Dispatcher>, acknowledger: Acknowledger) {
    let blocked = defer_blocked(dispatcher.clone(), acknowledger.clone());
    let cancelled = end_cancelled(dispatcher.clone(), acknowledger.clone());
    let turns = dispatcher.clone();
    tokio::join!(blocked, cancelled, turns.keep_time(), pause_without_store(dispatcher, acknowledger));
}

/// Ends cancelled jobs whose model is not loaded: no handler is needed to say so.
async fn end_cancelled(dispatcher: Arc<Dispatcher>, acknowledger: Acknowledger) {
    loop {
        let cancelled = dispatcher.cancelled().await;
        for direct in cancelled.directs {
            acknowledger.cancelled_direct(direct);
        }
        for in_flight in cancelled.messages {
            let Ok(job) = &in_flight.job else { continue };
            if !dispatcher.jobs().start(job, in_flight.message.attempt) {
                acknowledger.cancelled(in_flight);
                continue;
            }
            // It was sent anew meanwhile.
            dispatcher.jobs().requeue(job.id.as_str(), None);
            for in_flight in dispatcher.accept(vec![in_flight]) {
                acknowledger.not_started(in_flight).await;
            }
        }
    }
}

/// Nothing is started while the store is away; what waits here for a handler waits in its queue then.
async fn pause_without_store(dispatcher: Arc<Dispatcher>, acknowledger: Acknowledger) {
    let mut trouble = acknowledger.store_health.subscribe();
    loop {
        let is_away = trouble.borrow_and_update().is_some();
        acknowledger.metrics.store_available(!is_away);
        for in_flight in dispatcher.pause(is_away) {
            acknowledger.not_started(in_flight).await;
        }
        if trouble.changed().await.is_err() {
            return;
        }
    }
}
