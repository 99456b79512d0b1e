//! Keeps a session with the broker: connects again by itself, slower and slower while it fails.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::broker::Broker;
use super::fault::Fault;
use super::session::Session;
use crate::backoff::Backoff;

const INITIAL_BACKOFF: Duration = Duration::from_millis(250);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// After a session that lived for so long, the next one is tried at once.
const STABLE: Duration = Duration::from_secs(10);

pub(super) struct ConnectionManager {
    state: watch::Receiver<State>,
    closing: CancellationToken,
    /// How long a caller waits for a connection that is being made.
    limit: Duration,
    _worker: AbortOnDropHandle<()>,
}

#[derive(Clone)]
pub(super) enum State {
    /// The first attempt, or the first after a session.
    Connecting,
    Up(Arc<Session>),
    /// Sent anew for every attempt that fails.
    Down(Fault),
}

impl ConnectionManager {
    pub(super) fn start(broker: Broker) -> Self {
        let limit = Duration::from_millis(broker.settings.connect_timeout_ms);
        let (sender, state) = watch::channel(State::Connecting);
        let closing = CancellationToken::new();
        let worker = tokio::spawn(keep(Arc::new(broker), sender, closing.clone()));
        Self { state, closing, limit, _worker: AbortOnDropHandle::new(worker) }
    }

    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    pub(super) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// The session of this moment, or the one that is being made.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Fault> {
        let mut state = self.state();
        let session = async {
            loop {
                match state.borrow_and_update().clone() {
                    State::Up(session) if session.is_alive() => return Ok(session),
                    State::Up(over) => over.doubted.notify_one(),
                    State::Down(fault) => return Err(fault),
                    State::Connecting => {}
                }
                if state.changed().await.is_err() {
                    return Err(Fault::unavailable("no one keeps the connection any more"));
                }
            }
        };
        tokio::time::timeout(self.limit, session)
            .await
            .unwrap_or_else(|_| Err(Fault::unavailable("there is no connection yet")))
    }

    /// The session that a message came by, if it still lives.
    pub(super) fn session_of(&self, generation: u64) -> Option<Arc<Session>> {
        match &*self.state.borrow() {
            State::Up(session) if session.generation == generation => Some(Arc::clone(session)),
            _ => None,
        }
    }
}

async fn keep(broker: Arc<Broker>, state: watch::Sender<State>, closing: CancellationToken) {
    let name = broker.settings.queue.as_str();
    // Many hosts lose one broker at the same moment.
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    for generation in 1.. {
        let fault = match Session::open(&broker, generation).await {
            Err(fault) => fault,
            Ok(session) => {
                let session = Arc::new(session);
                let began = Instant::now();
                tracing::info!(queue = name, generation, "connected to RabbitMQ");
                state.send_replace(State::Up(Arc::clone(&session)));
                let fault = session.serve(&closing).await;
                if began.elapsed() >= STABLE {
                    backoff.reset();
                    tracing::warn!(queue = name, problem = fault.problem, "the connection to RabbitMQ is over");
                    state.send_replace(State::Connecting);
                    continue;
                }
                fault
            }
        };
        let pause = backoff.next_pause();
        tracing::warn!(
            queue = name,
            problem = fault.problem,
            next_try_ms = pause.as_millis() as u64,
            "no connection to RabbitMQ"
        );
        state.send_replace(State::Down(fault));
        sleep(pause).await;
    }
}
