//! Counts the attempts to deliver, until someone asks for them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::job::measured::WebhookAttempts;

#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<BTreeMap<(&'static str, bool), u64>>);

impl Attempts {
    pub(super) fn count(&self, kind: &'static str, delivered: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((kind, delivered)).or_default() += 1;
    }

    /// What was counted since the last call.
    pub(super) fn take(&self) -> Vec<WebhookAttempts> {
        let counted = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        counted
            .into_iter()
            .map(|((kind, delivered), count)| WebhookAttempts { kind: kind.to_owned(), delivered, count })
            .collect()
    }
}
