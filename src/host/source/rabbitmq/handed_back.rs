//! Which attempt a delivery is, when messages go back to the broker that no one has tried.
//!
//! A message that waited too long, or whose connection broke while it waited, has not been tried. RabbitMQ counts it all the
//! same: since 4.3 only after a broken connection, before that whenever a message goes back. What this process gave back
//! usually comes back to this process, which then knows better.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lapin::message::Delivery;

use super::record::{broker_count, earlier_attempts};

/// Messages that can be remembered; beyond, all are forgotten, which costs them an attempt.
const REMEMBERED: usize = 10_000;

#[derive(Default)]
pub(super) struct HandedBack {
    messages: Mutex<HashMap<u64, Entry>>,
}

#[derive(Default)]
struct Entry {
    /// What the broker had counted when the message was handed back, until it comes again.
    handed_back_at: Option<u32>,
    /// Deliveries that the broker counts and that were no attempts.
    untried: u32,
}

impl HandedBack {
    /// Which attempt this delivery is, counted from 1.
    pub(super) fn attempt(&self, delivery: &Delivery) -> u32 {
        let count = broker_count(delivery);
        let mut messages = self.messages();
        // Most of the time nothing was handed back, and nothing is hashed.
        let entry = if messages.is_empty() { None } else { messages.get_mut(&key(delivery)) };
        let untried = entry.map_or(0, |entry| {
            if entry.handed_back_at.take().is_some_and(|before| count > before) {
                entry.untried += 1;
            }
            entry.untried
        });
        earlier_attempts(&delivery.properties).saturating_add(count.saturating_sub(untried)).saturating_add(1)
    }

    /// The message goes back untried.
    pub(super) fn note(&self, delivery: &Delivery) {
        let mut messages = self.messages();
        if messages.len() >= REMEMBERED {
            messages.clear();
        }
        messages.entry(key(delivery)).or_default().handed_back_at = Some(broker_count(delivery));
    }

    /// The message is settled.
    pub(super) fn forget(&self, delivery: &Delivery) {
        let mut messages = self.messages();
        if !messages.is_empty() {
            messages.remove(&key(delivery));
        }
    }

    /// A panic under the lock leaves the map as it was: every change is one assignment.
    fn messages(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Distinguishes messages, and the copies of one message that the broker counts apart.
fn key(delivery: &Delivery) -> u64 {
    let mut hasher = DefaultHasher::new();
    delivery.properties.message_id().as_ref().map(ToString::to_string).hash(&mut hasher);
    earlier_attempts(&delivery.properties).hash(&mut hasher);
    delivery.data.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn delivery(count: u32) -> Delivery {
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), count > 0, b"{}".to_vec());
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(count.into()));
        delivery.properties = delivery.properties.with_headers(headers);
        delivery
    }

    #[test]
    fn what_went_back_untried_is_no_attempt() {
        let memory = HandedBack::default();
        assert_eq!(memory.attempt(&delivery(0)), 1);
        memory.note(&delivery(0));
        assert_eq!(memory.attempt(&delivery(1)), 1, "counted by the broker");
        memory.note(&delivery(1));
        assert_eq!(memory.attempt(&delivery(1)), 1, "not counted by the broker (4.3)");
        assert_eq!(memory.attempt(&delivery(2)), 2, "a host died over it");
        memory.forget(&delivery(2));
        assert_eq!(memory.attempt(&delivery(2)), 3, "settled: another message, which only looks the same");
    }

    #[test]
    fn a_classic_queue_only_says_redelivered() {
        let classic = |redelivered| Delivery::mock(1, "".into(), "q".into(), redelivered, b"{}".to_vec());
        let memory = HandedBack::default();
        assert_eq!((memory.attempt(&classic(false)), memory.attempt(&classic(true))), (1, 2));
        memory.note(&classic(false));
        assert_eq!(memory.attempt(&classic(true)), 1);
        memory.note(&classic(true));
        assert_eq!(memory.attempt(&classic(true)), 1);
    }
}
