//! Takes messages from one source, as many as free handlers can take.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Dispatcher;
use super::acknowledge::Acknowledger;
use crate::backoff::Backoff;
use crate::fault_point::fault_point;
use crate::host::in_flight::InFlight;
use crate::host::source::Source;
use crate::job::request::catalogue::Catalogue;

/// Pauses after a source that cannot be asked.
const INITIAL_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// For a source to take back what waits in it: what it does not is delivered again when the queue's own time is up.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// Receives until `stop`; what arrives too late to be started is put back.
pub async fn run(
    source: Arc<dyn Source>,
    acknowledger: Acknowledger,
    dispatcher: Arc<Dispatcher>,
    catalogue: Arc<Catalogue>,
    stop: CancellationToken,
) {
    let mut demand = dispatcher.demand();
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            received = receive(source.as_ref(), &mut demand) => received,
        };
        match received {
            Ok(messages) => {
                fault_point!("received");
                backoff.reset();
                let in_flight = messages.into_iter().map(|message| InFlight::new(source.clone(), message, catalogue.as_ref()));
                let (ended, others): (Vec<_>, Vec<_>) = in_flight.partition(InFlight::is_over);
                for in_flight in ended {
                    acknowledger.notify_again(in_flight);
                }
                let (refused, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|in_flight| in_flight.model.is_err());
                for in_flight in refused {
                    acknowledger.refuse(in_flight);
                }
                let (again, jobs): (Vec<_>, Vec<_>) = others.into_iter().partition(InFlight::came_again);
                for in_flight in again {
                    acknowledger.resume(in_flight, dispatcher.clone());
                }
                for in_flight in dispatcher.accept(jobs) {
                    acknowledger.not_started(in_flight).await;
                }
            }
            Err(error) => {
                let pause = backoff.next_pause();
                tracing::warn!(source = source.name(), %error, pause_ms = pause.as_millis() as u64, "no messages from here for now");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
    if tokio::time::timeout(CLOSE_LIMIT, source.close()).await.is_err() {
        tracing::warn!(source = source.name(), "the source does not take back in time what waits here; it will by itself");
    }
}

async fn receive(
    source: &dyn Source,
    demand: &mut watch::Receiver<usize>,
) -> Result<Vec<crate::host::source::Message>, crate::host::source::SourceError> {
    // Only the dispatcher's end closes the channel, and then `stop` was cancelled before.
    let Ok(most) = demand.wait_for(|most| *most > 0).await.map(|most| *most) else { return std::future::pending().await };
    source.receive(most).await
}
