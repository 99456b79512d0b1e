//! The messages of one connection: those that wait here, and those that were handed out.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use lapin::message::Delivery;
use lapin::types::DeliveryTag;
use tokio::time::Instant;

/// A message that the broker has given to us and that is not settled.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) delivery: Delivery,
    /// Counted from 1.
    pub(super) attempt: u32,
    pub(super) since: Instant,
}

#[derive(Default)]
pub(super) struct Deliveries {
    /// Oldest first.
    waiting: VecDeque<InFlight>,
    handed_out: HashMap<DeliveryTag, Arc<InFlight>>,
}

impl Deliveries {
    pub(super) fn put(&mut self, in_flight: InFlight) {
        self.waiting.push_back(in_flight);
    }

    /// Hands out `most` messages at most.
    pub(super) fn take(&mut self, most: usize) -> Vec<Arc<InFlight>> {
        let taken: Vec<Arc<InFlight>> = self.waiting.drain(..most.min(self.waiting.len())).map(Arc::new).collect();
        self.handed_out.extend(taken.iter().map(|in_flight| (in_flight.delivery.delivery_tag, Arc::clone(in_flight))));
        taken
    }

    pub(super) fn handed_out(&self, tag: DeliveryTag) -> Option<Arc<InFlight>> {
        self.handed_out.get(&tag).map(Arc::clone)
    }

    pub(super) fn forget(&mut self, tag: DeliveryTag) {
        self.handed_out.remove(&tag);
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Since when the oldest of those that wait is here.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.waiting.front().map(|in_flight| in_flight.since)
    }

    /// Removes those that wait and came at `moment` or before.
    pub(super) fn remove_until(&mut self, moment: Instant) -> Vec<InFlight> {
        let old = self.waiting.iter().take_while(|in_flight| in_flight.since <= moment).count();
        self.waiting.drain(..old).collect()
    }
}
