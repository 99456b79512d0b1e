//! What is known of handlers that share a device, next to what they are at.

use std::time::Duration;

use tokio::time::Instant;

use super::slot::Slot;
use super::swaps::{Member, Rules, Stage, Starts};
use crate::host::sharing;

/// All of them, and what they share by.
pub(super) struct Sharing {
    pub(super) rules: Rules,
    pub(super) lookahead: usize,
    pub(super) devices: usize,
    /// One a slot; none: its device is its own.
    pub(super) members: Vec<Option<SharedSlot>>,
    /// When something is to be decided although nothing else happens.
    pub(super) due: Option<Instant>,
}

pub(super) struct SharedSlot {
    pub(super) device: usize,
    memory_mib: u64,
    pub(super) starts: Starts,
    ready_at: Instant,
    used_at: Instant,
    has_served: bool,
    /// Starts in a row that have failed.
    failures: u32,
    /// It is loaded for a job that waits.
    pub(super) for_jobs: bool,
    pub(super) planned: Planned,
    /// Since when others have been making room for it.
    pub(super) swap_since: Option<Instant>,
    /// The slot for which it makes room.
    pub(super) makes_room_for: Option<usize>,
}

/// What is to become of a handler that can be neither loaded nor unloaded at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planned {
    Nothing,
    /// It is loaded as soon as others are gone.
    Next,
    /// It is given no further job, and unloaded when it is idle.
    Blocked,
}

impl Sharing {
    pub(super) fn new(settings: &sharing::Settings, shares: impl Iterator<Item = Option<sharing::Share>>) -> Self {
        let now = Instant::now();
        let members = shares.map(|share| {
            share.map(|sharing::Share { device, memory_mib }| SharedSlot {
                device,
                memory_mib,
                starts: Starts::Untried,
                ready_at: now,
                used_at: now,
                has_served: false,
                failures: 0,
                for_jobs: false,
                planned: Planned::Nothing,
                swap_since: None,
                makes_room_for: None,
            })
        });
        let members: Vec<_> = members.collect();
        let max_wait = Duration::from_millis(settings.max_swap_wait_ms);
        Self {
            rules: Rules { memory_mib: settings.memory_mib.unwrap_or(0), max_wait },
            lookahead: settings.lookahead as usize,
            devices: members.iter().flatten().map(|member| member.device + 1).max().unwrap_or(0),
            members,
            due: None,
        }
    }

    pub(super) fn is_used(&self) -> bool {
        self.devices > 0
    }

    pub(super) fn has(&self, slot: usize) -> bool {
        self.members[slot].is_some()
    }

    pub(super) fn is_blocked(&self, slot: usize) -> bool {
        self.members[slot].as_ref().is_some_and(|member| member.planned == Planned::Blocked)
    }

    /// Notes what a handler is at from now on.
    pub(super) fn note(&mut self, slot: usize, before: &Slot, state: &Slot) {
        let Some(member) = &mut self.members[slot] else { return };
        let now = Instant::now();
        match state {
            Slot::Idle if *before == Slot::Starting => {
                member.starts = Starts::Succeeded;
                member.ready_at = now;
                member.used_at = now;
                member.has_served = false;
                member.failures = 0;
            }
            Slot::Idle => member.used_at = now,
            Slot::Busy(_) => {
                member.used_at = now;
                member.has_served = true;
            }
            Slot::Down(_) => {
                let never = matches!(member.starts, Starts::Untried | Starts::Failed);
                member.starts = if never { Starts::Failed } else { Starts::Lost };
                // What made room for it is gone: a later start is counted as the swap.
                if *before == Slot::Starting {
                    member.failures = member.failures.saturating_add(1);
                } else {
                    member.swap_since = None;
                }
            }
            Slot::Starting | Slot::Unloading | Slot::Unloaded => {}
        }
    }

    /// Whether the last start of the handler has failed.
    pub(super) fn cannot_start(&self, slot: usize) -> bool {
        self.members[slot].as_ref().is_some_and(|member| member.failures > 0)
    }

    /// How long the handler that got ready was made room for; none: there was room.
    pub(super) fn swapped(&mut self, slot: usize) -> Option<Duration> {
        self.members[slot].as_mut()?.swap_since.take().map(|since| since.elapsed())
    }

    /// The slot for whose handler that of another one is unloaded.
    pub(super) fn wanted_by(&self, slot: usize) -> Option<usize> {
        self.members[slot].as_ref()?.makes_room_for
    }

    /// How long it has been since the handler had a job.
    pub(super) fn unused(&self, slot: usize) -> Duration {
        self.members[slot].as_ref().map_or(Duration::ZERO, |member| member.used_at.elapsed())
    }
}

impl SharedSlot {
    /// As the decisions see it. `waited`: how long the oldest job has waited that it is to do.
    pub(super) fn member(&self, slot: &Slot, waited: Option<Duration>) -> Member {
        let Self { memory_mib, starts, ready_at, used_at, has_served, failures, .. } = *self;
        Member { memory_mib, stage: stage(slot), starts, waited, ready_at, used_at, has_served, failures }
    }
}

fn stage(slot: &Slot) -> Stage {
    match slot {
        Slot::Starting => Stage::Loading,
        Slot::Idle => Stage::Idle,
        Slot::Busy(_) => Stage::Busy,
        Slot::Unloading => Stage::Unloading,
        Slot::Unloaded => Stage::Unloaded,
        Slot::Down(_) => Stage::Down,
    }
}
