//! Models take turns at the memory of a device: what `swaps` decides of them becomes what their handlers are at.

use std::time::Duration;

use tokio::time::Instant;

use super::shared::Planned;
use super::slot::Slot;
use super::state::State;
use super::swaps::{Member, Starts, plan, would_load};
use crate::host::in_flight::InFlight;
use crate::host::job_service::Direct;

impl State {
    /// Decides who is loaded and unloaded next, on every shared device.
    pub(super) fn share_devices(&mut self) {
        self.sharing.due = None;
        if self.draining {
            return;
        }
        // No model is loaded for a caller who has gone.
        self.directs.retain(|direct| !direct.answer.is_closed());
        let now = Instant::now();
        for device in 0..self.sharing.devices {
            let slots = self.slots_on(device);
            let members = self.members(&slots);
            let plan = plan(&members, self.sharing.rules, now);
            for (place, slot) in slots.iter().enumerate() {
                let Some(member) = &mut self.sharing.members[*slot] else { continue };
                member.planned = if plan.next.contains(&place) {
                    Planned::Next
                } else if plan.blocked.contains(&place) {
                    Planned::Blocked
                } else {
                    Planned::Nothing
                };
                if plan.unload.iter().any(|(_, wanted)| *wanted == place) {
                    member.swap_since.get_or_insert(now);
                }
                if plan.load.contains(&place) {
                    member.for_jobs = members[place].waited.is_some();
                    self.slots[*slot] = Slot::Starting;
                } else if self.slots[*slot] == Slot::Unloaded && member.planned != Planned::Next {
                    // Nobody waits for it any more.
                    member.swap_since = None;
                }
            }
            for (place, wanted) in plan.unload {
                self.slots[slots[place]] = Slot::Unloading;
                if let Some(member) = &mut self.sharing.members[slots[place]] {
                    member.makes_room_for = Some(slots[wanted]);
                }
            }
            self.sharing.due = self.sharing.due.into_iter().chain(plan.due).min();
        }
    }

    fn slots_on(&self, device: usize) -> Vec<usize> {
        let slots = self.sharing.members.iter().enumerate();
        slots
            .filter(|(_, member)| member.as_ref().is_some_and(|member| member.device == device))
            .map(|(slot, _)| slot)
            .collect()
    }

    fn members(&self, slots: &[usize]) -> Vec<Member> {
        let members = slots.iter().filter_map(|slot| {
            let shared = self.sharing.members[*slot].as_ref()?;
            Some(shared.member(&self.slots[*slot], self.waited(*slot)))
        });
        members.collect()
    }

    /// How long the oldest job has waited that a handler here would be given, next to what other handlers of its model are about to do.
    fn waited(&self, slot: usize) -> Option<Duration> {
        let model = self.models[slot];
        let messages =
            self.messages.iter().filter(|in_flight| self.is_startable(in_flight, model) && !self.is_cancelled(in_flight));
        let directs = self.directs.iter().filter(|direct| direct.model == model);
        let mut waits: Vec<Duration> = messages.map(InFlight::waited).chain(directs.map(Direct::waited)).collect();
        waits.sort_unstable();
        let others = if self.slots[slot] == Slot::Unloaded { self.covered(slot) } else { 0 };
        waits.into_iter().rev().nth(others)
    }

    /// How many jobs of a slot's model the model's other handlers take that are idle, or are loaded before this one.
    fn covered(&self, slot: usize) -> usize {
        let is_next = |slot: usize| self.sharing.members[slot].as_ref().is_some_and(|member| member.planned == Planned::Next);
        let of_model = (0..self.slots.len()).filter(|other| *other != slot && self.models[*other] == self.models[slot]);
        let covering = of_model.filter(|other| match self.slots[*other] {
            Slot::Idle => !self.sharing.is_blocked(*other),
            Slot::Starting => true,
            Slot::Unloaded => is_next(*other) && (*other < slot || !is_next(slot)),
            _ => false,
        });
        covering.count() * self.batch
    }

    fn is_cancelled(&self, in_flight: &InFlight) -> bool {
        in_flight.job.as_ref().is_ok_and(|job| self.jobs.is_to_be_cancelled(job.id.as_str()))
    }

    /// Takes out messages of cancelled jobs for which a model would have to be loaded only to say so.
    pub(super) fn withdraw_cancelled(&mut self) -> Vec<InFlight> {
        if !self.sharing.is_used() {
            return Vec::new();
        }
        let (cancelled, others) = std::mem::take(&mut self.messages).into_iter().partition::<Vec<_>, _>(|in_flight| {
            let model = in_flight.model.as_ref().copied().unwrap_or(0);
            self.shares(model) && !self.slots_of(model).any(Slot::is_ready) && self.is_cancelled(in_flight)
        });
        self.messages = others.into();
        cancelled
    }

    /// Takes out those of the jobs whose callers wait that `is_meant` says of, unless a handler has their model ready.
    pub(super) fn withdraw_directs(&mut self, is_meant: impl Fn(&Self, &Direct) -> bool) -> Vec<Direct> {
        let (withdrawn, others) = std::mem::take(&mut self.directs)
            .into_iter()
            .partition::<Vec<_>, _>(|direct| is_meant(self, direct) && !self.slots_of(direct.model).any(Slot::is_ready));
        self.directs = others.into();
        withdrawn
    }

    pub(super) fn shares(&self, model: usize) -> bool {
        self.models.iter().enumerate().any(|(slot, of)| *of == model && self.sharing.has(slot))
    }

    /// Whether the model can be loaded as far as is known: some start of it has succeeded, or none has failed.
    pub(super) fn is_able(&self, model: usize) -> bool {
        let slots = self.slots.iter().zip(&self.sharing.members).zip(&self.models).filter(|(_, of)| **of == model);
        slots.map(|((slot, member), _)| (slot, member)).any(|(slot, member)| {
            let has_failed = member.as_ref().is_some_and(|member| member.starts == Starts::Failed);
            !has_failed && !matches!(slot, Slot::Down(_))
        })
    }

    /// Unloaded handlers of the model that a job would have loaded at once.
    pub(super) fn loadable(&self, model: usize) -> usize {
        let now = Instant::now();
        let unloaded = (0..self.slots.len()).filter(|slot| self.models[*slot] == model && self.slots[*slot] == Slot::Unloaded);
        let loadable = unloaded.filter(|slot| {
            let Some(member) = &self.sharing.members[*slot] else { return false };
            let slots = self.slots_on(member.device);
            let place = slots.iter().position(|other| other == slot);
            place.is_some_and(|place| would_load(&self.members(&slots), place, self.sharing.rules, now))
        });
        loadable.count()
    }

    /// Whether the model is on its way into memory for jobs that wait, rather than again or for the first time.
    pub(super) fn is_swapped_in(&self, model: usize) -> bool {
        self.slots.iter().zip(&self.sharing.members).zip(&self.models).any(|((slot, member), of)| {
            let Some(member) = member.as_ref().filter(|_| *of == model) else { return false };
            member.planned == Planned::Next || *slot == Slot::Starting && member.for_jobs
        })
    }

    /// Messages that sharing models could do with beyond those that are here, to see whose model is loaded: none while one is loaded
    /// or unloaded, which takes its time.
    pub(super) fn looks_ahead_for(&self) -> usize {
        let sees = (0..self.sharing.devices).any(|device| {
            let slots = self.slots_on(device);
            let in_between = slots.iter().any(|slot| matches!(self.slots[*slot], Slot::Starting | Slot::Unloading));
            !in_between && slots.iter().any(|slot| self.slots[*slot] == Slot::Unloaded && self.is_able(self.models[*slot]))
        });
        if !sees {
            return 0;
        }
        let here = self.messages.iter().filter(|in_flight| in_flight.model.as_ref().is_ok_and(|model| self.shares(*model)));
        self.lookahead().saturating_sub(here.count())
    }

    pub(super) fn lookahead(&self) -> usize {
        self.sharing.lookahead.max(self.batch)
    }
}
