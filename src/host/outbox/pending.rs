//! What waits to be sent for a job, and why it was not sent yet.

use std::time::{Duration, Instant};

use crate::job::notification::{Message, Notification};

/// After so long the addresses of images may have expired, which temporary credentials end early.
pub(super) const FRESH: Duration = Duration::from_mins(15);

/// The notifications of a job, and since when they are written.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) notifications: Vec<Notification>,
    pub(super) since: Instant,
}

impl Written {
    pub(super) fn now(notifications: Vec<Notification>) -> Self {
        Self { notifications, since: Instant::now() }
    }

    /// About what they take of the memory.
    pub(super) fn bytes(&self) -> usize {
        self.notifications.iter().map(body_bytes).sum()
    }
}

/// Why a round has not brought all of them to their receivers.
pub(super) enum NotSent {
    Later(Later),
    /// The job was taken for complete, and it has no record.
    NoRecord,
    /// No receiver may be called, and there is no backend in their place; the text says why.
    Nobody(String),
}

/// What became of a notification that needs no other attempt.
pub(super) enum Taken {
    /// Its receiver has it, or wants it no more.
    Received,
    /// It has no receiver: its address may not be called, and there is no backend in its place.
    ByNobody(String),
}

/// A reason to try again.
#[derive(Debug, Default)]
pub(super) struct Later {
    pub(super) problem: String,
    /// Not before.
    pub(super) asked: Duration,
    /// Whose it is, where one has failed.
    pub(super) receiver: Option<String>,
    /// Waiting for long does not help: a receiver has failed, or what is to be sent cannot be made. The bucket is waited for.
    pub(super) may_give_up: bool,
}

impl Later {
    /// What counts of two reasons: the first, but one that may be given up before all others; and the longer pause.
    pub(super) fn first_of(first: Option<Self>, other: Self) -> Self {
        let Some(first) = first else { return other };
        let asked = first.asked.max(other.asked);
        let counts = if first.may_give_up || !other.may_give_up { first } else { other };
        Self { asked, ..counts }
    }
}

fn body_bytes(notification: &Notification) -> usize {
    match &notification.message {
        Message::Backend { body, .. } | Message::Callback { body, .. } | Message::LoadBalancer { body } => body.len(),
        Message::AssetService(_) => 0,
    }
}
