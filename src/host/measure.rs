//! What the host measures next to jobs: its handlers as they change, its queues every few seconds.

use std::sync::Arc;
use std::time::Duration;

use super::dispatch::Dispatcher;
use super::source::Source;
use crate::job::request::catalogue::Catalogue;
use crate::metrics::Metrics;

const EVERY: Duration = Duration::from_secs(5);

/// Follows the handlers until the host ends.
pub async fn handlers(dispatcher: Arc<Dispatcher>, catalogue: Arc<Catalogue>, metrics: Metrics) {
    let mut snapshot = dispatcher.snapshot();
    let mut handlers = dispatcher.states();
    loop {
        let in_flight = snapshot.borrow_and_update().in_flight;
        let states = handlers.borrow_and_update().clone();
        for (model, states) in catalogue.models().zip(&states) {
            metrics.model_handlers(model.name.as_str(), states);
        }
        metrics.handlers(&states, in_flight);
        let changed = tokio::select! {
            changed = snapshot.changed() => changed,
            changed = handlers.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Asks a queue how much waits in it, until the host ends.
pub async fn queue(source: Arc<dyn Source>, metrics: Metrics) {
    loop {
        match tokio::time::timeout(EVERY, source.depth()).await {
            Ok(Ok(depth)) => metrics.queue(source.name(), depth.waiting, depth.oldest),
            Ok(Err(error)) => {
                tracing::debug!(source = source.name(), %error, "no depth");
                metrics.queue_unknown(source.name());
            }
            Err(_) => metrics.queue_unknown(source.name()),
        }
        tokio::time::sleep(EVERY).await;
    }
}
