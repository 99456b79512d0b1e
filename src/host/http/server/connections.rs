//! Which connections are open, and which of them has been without a request for longest.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::clock::later;

pub(super) struct Connections {
    max: usize,
    registry: Mutex<Registry>,
    closing: CancellationToken,
}

#[derive(Default)]
struct Registry {
    open: usize,
    /// Counts the moments at which a connection became idle.
    moments: u64,
    /// By the moment since which each is idle.
    idle: BTreeMap<u64, CancellationToken>,
}

/// One open connection.
pub(super) struct Slot {
    connections: Arc<Connections>,
    replaced: CancellationToken,
    /// Since when it is idle, where it is.
    idle_since: Mutex<Option<u64>>,
    head: Head,
}

/// The head of a request that is arriving.
#[derive(Default)]
struct Head {
    began: Mutex<Option<Instant>>,
    changed: Notify,
}

/// A request that is being answered: until this is dropped, its connection is not idle.
pub(super) struct Answering(Arc<Slot>);

impl Connections {
    pub(super) fn new(max: usize) -> Self {
        Self { max: max.max(1), registry: Mutex::default(), closing: CancellationToken::new() }
    }

    /// Room for one more connection, if need be that of the one that is idle for longest. None: every one is answering.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Slot> {
        let mut registry = self.registry();
        if registry.open >= self.max {
            let (_, oldest) = registry.idle.pop_first()?;
            oldest.cancel();
        }
        registry.open += 1;
        drop(registry);
        let slot = Slot {
            connections: Arc::clone(self),
            replaced: CancellationToken::new(),
            idle_since: Mutex::default(),
            head: Head::default(),
        };
        slot.rest();
        Some(slot)
    }

    /// The server ends: idle connections at once, the others after their answer.
    pub(super) fn close(&self) {
        for (_, idle) in std::mem::take(&mut self.registry().idle) {
            idle.cancel();
        }
        self.closing.cancel();
    }

    /// A panic under the lock leaves nothing half done: every change is a few assignments.
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Bytes have arrived: the first ones of a head, where none is under way and nothing is being answered.
    pub(super) fn read(&self) {
        if self.idle_since().is_none() {
            return;
        }
        let mut began = self.head.began();
        if began.is_none() {
            *began = Some(Instant::now());
            self.head.changed.notify_one();
        }
    }

    /// Resolves when a head is not complete so long after its first byte.
    pub(super) async fn head_is_overdue(&self, limit: Duration) {
        loop {
            let began = *self.head.began();
            let Some(began) = began else {
                self.head.changed.notified().await;
                continue;
            };
            sleep_until(later(began, limit)).await;
            if *self.head.began() == Some(began) {
                return;
            }
        }
    }

    /// A request has arrived.
    pub(super) fn begin(self: &Arc<Self>) -> Answering {
        *self.head.began() = None;
        self.work();
        Answering(Arc::clone(self))
    }

    /// Resolves when another connection has taken this one's place.
    pub(super) async fn replaced(&self) {
        self.replaced.cancelled().await;
    }

    /// Resolves when the server ends.
    pub(super) async fn closing(&self) {
        self.connections.closing.cancelled().await;
    }

    fn rest(&self) {
        let mut registry = self.connections.registry();
        registry.moments += 1;
        let moment = registry.moments;
        registry.idle.insert(moment, self.replaced.clone());
        drop(registry);
        *self.idle_since() = Some(moment);
    }

    fn work(&self) {
        let since = self.idle_since().take();
        if let Some(moment) = since {
            self.connections.registry().idle.remove(&moment);
        }
    }

    fn idle_since(&self) -> MutexGuard<'_, Option<u64>> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Head {
    fn began(&self) -> MutexGuard<'_, Option<Instant>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.work();
        self.connections.registry().open -= 1;
    }
}

impl Answering {
    /// The answer, whose body ends this.
    pub(super) fn until_sent(self, answer: Response) -> Response {
        answer.map(|body| Body::new(SentBody { body, _answering: self }))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.rest();
    }
}

/// A body that keeps its connection from being idle until all of it has been handed to the socket.
struct SentBody {
    body: Body,
    _answering: Answering,
}

impl HttpBody for SentBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_takes_the_place_of_the_one_that_is_idle_for_longest() {
        let connections = Arc::new(Connections::new(2));
        let first = Arc::new(connections.enter().unwrap());
        let second = Arc::new(connections.enter().unwrap());
        let answering = first.begin();
        let third = connections.enter().unwrap();
        assert!(second.replaced.is_cancelled() && !first.replaced.is_cancelled(), "the first is answering");
        drop(second);
        drop(answering);
        let _fourth = connections.enter().unwrap();
        assert!(third.replaced.is_cancelled(), "it is idle for longer than the first, which has just answered");
        assert!(!first.replaced.is_cancelled());
    }

    #[test]
    fn where_every_connection_is_answering_there_is_no_room() {
        let connections = Arc::new(Connections::new(1));
        let only = Arc::new(connections.enter().unwrap());
        let answering = only.begin();
        assert!(connections.enter().is_none());
        drop(answering);
        assert!(connections.enter().is_some());
    }
}
