//! The messages of one connection: those that wait here, and those that were handed out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use lapin::message::Delivery;
use lapin::types::DeliveryTag;
use tokio::time::Instant;

/// A message that the broker has given to us and that is not settled.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) delivery: Delivery,
    /// Counted from 1.
    pub(super) attempt: u32,
    pub(super) since: Instant,
}

#[derive(Default)]
pub(super) struct Shelf {
    /// Oldest first.
    waiting: VecDeque<Held>,
    handed_out: HashMap<DeliveryTag, Arc<Held>>,
}

impl Shelf {
    pub(super) fn put(&mut self, held: Held) {
        self.waiting.push_back(held);
    }

    /// Hands out `most` messages at most.
    pub(super) fn take(&mut self, most: usize) -> Vec<Arc<Held>> {
        let taken: Vec<Arc<Held>> = self.waiting.drain(..most.min(self.waiting.len())).map(Arc::new).collect();
        self.handed_out.extend(taken.iter().map(|held| (held.delivery.delivery_tag, Arc::clone(held))));
        taken
    }

    pub(super) fn handed_out(&self, tag: DeliveryTag) -> Option<Arc<Held>> {
        self.handed_out.get(&tag).map(Arc::clone)
    }

    pub(super) fn settled(&mut self, tag: DeliveryTag) {
        self.handed_out.remove(&tag);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Since when the oldest of those that wait is here.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.waiting.front().map(|held| held.since)
    }

    /// Removes those that wait and came at `moment` or before.
    pub(super) fn remove_until(&mut self, moment: Instant) -> Vec<Held> {
        let old = self.waiting.iter().take_while(|held| held.since <= moment).count();
        self.waiting.drain(..old).collect()
    }
}
