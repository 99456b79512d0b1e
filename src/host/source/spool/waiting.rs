//! The jobs of a spool that wait, in the order in which they are due.

use std::collections::BTreeSet;
use std::time::Instant;

use super::name::Name;

/// A job that waits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Waiting {
    /// Not to be started before; by a clock that no one sets.
    pub(super) due: Instant,
    pub(super) name: Name,
}

impl Waiting {
    pub(super) fn due_now(name: Name) -> Self {
        Self { due: Instant::now(), name }
    }
}

/// How many of those whose id `counts` come before the job of this id; none where it does not wait.
pub(super) fn before(index: &BTreeSet<Waiting>, job_id: &str, counts: impl Fn(&str) -> bool) -> Option<u64> {
    let place = index.iter().position(|waiting| waiting.name.job_id == job_id)?;
    Some(index.iter().take(place).filter(|waiting| counts(&waiting.name.job_id)).count() as u64)
}
