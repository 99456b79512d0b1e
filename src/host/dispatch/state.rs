//! What is in flight and who does what, and which message a handler is given next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::HandlerPlace;
use super::assignment::Assignment;
use super::shared::Sharing;
use super::slot::Slot;
use crate::host::in_flight::InFlight;
use crate::host::job_service::{Direct, Model, ModelStatus, StatusSnapshot};
use crate::host::jobs::Jobs;
use crate::host::sharing;
use crate::protocol::deferral::DeferReason;

pub(super) struct State {
    pub(super) jobs: Arc<Jobs>,
    /// Messages of one event at most.
    pub(super) batch: usize,
    /// Of each slot, the place of its handler's model in the catalogue.
    pub(super) models: Vec<usize>,
    pub(super) slots: Vec<Slot>,
    pub(super) messages: VecDeque<InFlight>,
    /// Messages that are looked up before they may be started.
    pub(super) reserved: usize,
    pub(super) directs: VecDeque<Direct>,
    pub(super) draining: bool,
    /// The store is away: no message is started.
    pub(super) paused: bool,
    pub(super) sharing: Sharing,
    /// Of each model.
    starts: Vec<Starts>,
}

/// How the starts of one model's handlers went.
#[derive(Default, Clone)]
struct Starts {
    /// A handler has been ready: one that ends is started again while jobs wait.
    was_ready: bool,
    /// Why the last start failed, where none has succeeded.
    failure: Option<String>,
}

impl State {
    pub(super) fn new(places: &[HandlerPlace], batch: usize, sharing: &sharing::Settings, jobs: Arc<Jobs>) -> Self {
        let models: Vec<usize> = places.iter().map(|place| place.model).collect();
        let slots = places.iter().map(|place| if place.share.is_some() { Slot::Unloaded } else { Slot::Starting });
        let mut state = Self {
            jobs,
            batch,
            starts: vec![Starts::default(); models.iter().max().map_or(0, |last| last + 1)],
            slots: slots.collect(),
            models,
            messages: VecDeque::new(),
            reserved: 0,
            directs: VecDeque::new(),
            draining: false,
            paused: false,
            sharing: Sharing::new(sharing, places.iter().map(|place| place.share)),
        };
        state.share_devices();
        state
    }

    /// What a handler is at from now on.
    pub(super) fn set(&mut self, slot: usize, state: Slot) {
        let starts = &mut self.starts[self.models[slot]];
        match &state {
            Slot::Idle => starts.was_ready = true,
            Slot::Down(why) => starts.failure = Some(why.clone()),
            Slot::Starting | Slot::Busy(_) | Slot::Unloaded | Slot::Unloading => {}
        }
        self.sharing.note(slot, &self.slots[slot], &state);
        self.slots[slot] = state;
    }

    /// A worker wants to start its handler: at once, or when the device has room for it.
    pub(super) fn enter(&mut self, slot: usize) {
        if !self.sharing.has(slot) {
            self.set(slot, Slot::Starting);
        } else if self.slots[slot] != Slot::Starting {
            self.set(slot, Slot::Unloaded);
        }
    }

    pub(super) fn assign(&mut self, slot: usize) -> Option<Assignment> {
        if self.draining || self.sharing.is_blocked(slot) {
            return None;
        }
        let model = self.models[slot];
        let direct = self.directs.iter().position(|direct| direct.model == model);
        let assignment = match direct.and_then(|place| self.directs.remove(place)) {
            Some(direct) => Assignment::Direct(direct),
            None => Assignment::Messages(self.batch(model)?),
        };
        self.set(slot, Slot::Busy(assignment.job_ids()));
        Some(assignment)
    }

    /// The model's next message, and others that may share its event; no more than leaves as many for each of its other idle handlers.
    fn batch(&mut self, model: usize) -> Option<Vec<InFlight>> {
        let most = self.startable(model).div_ceil(self.idle(model).max(1)).min(self.batch);
        let next = self.messages.iter().position(|in_flight| self.is_startable(in_flight, model))?;
        let mut batch = vec![self.messages.remove(next)?];
        while batch.len() < most {
            let next = self.messages.iter().position(|in_flight| {
                self.is_startable(in_flight, model) && batch.iter().all(|member| member.shares_event_with(in_flight))
            });
            let Some(next) = next else { break };
            batch.extend(self.messages.remove(next));
        }
        Some(batch)
    }

    /// What keeps others from an idle handler that has nothing to do, with the reason why it is put back: the messages of sources whose
    /// window is half full of what cannot be started, and for each model whose handlers are busy or gone, what these could not take
    /// next anyway.
    pub(super) fn blocked(&mut self) -> Vec<(InFlight, DeferReason)> {
        let idles = self.models().any(|model| self.idle(model) > 0);
        let starts = self.models().any(|model| self.idle(model) > 0 && self.startable(model) > 0);
        // One that could be loaded is kept from its jobs by those of models that cannot.
        let loads = self.models().any(|model| self.startable(model) == 0 && self.loadable(model) > 0);
        if self.draining || !(idles || loads) || starts {
            return Vec::new();
        }
        let mut kept = vec![0; self.starts.len()];
        let mut blocks = Vec::with_capacity(self.messages.len());
        for in_flight in &self.messages {
            let same_source = self.messages.iter().filter(|other| Arc::ptr_eq(&other.source, &in_flight.source));
            let fills = idles && in_flight.source.window().is_some_and(|window| same_source.count() >= window.div_ceil(2));
            let model = in_flight.model.as_ref().copied().unwrap_or(0);
            let waits = !self.runs(in_flight);
            kept[model] += usize::from(waits);
            blocks.push(fills || waits && kept[model] > self.takes_next(model));
        }
        let mut blocked = Vec::new();
        for (in_flight, blocks) in std::mem::take(&mut self.messages).into_iter().zip(blocks) {
            if blocks {
                let reason = if self.runs(&in_flight) { DeferReason::Running } else { DeferReason::ModelBusy };
                blocked.push((in_flight, reason));
            } else {
                self.messages.push_back(in_flight);
            }
        }
        blocked
    }

    /// Two deliveries of one job must not generate at the same time: the second waits, and is a replay then.
    fn runs(&self, in_flight: &InFlight) -> bool {
        let Ok(job) = &in_flight.job else { return false };
        self.running().any(|id| id == job.id.as_str()) || self.directs.iter().any(|direct| direct.job.id == job.id)
    }

    fn running(&self) -> impl Iterator<Item = &String> {
        self.slots.iter().flat_map(|slot| match slot {
            Slot::Busy(ids) => ids.as_slice(),
            _ => &[],
        })
    }

    fn models(&self) -> std::ops::Range<usize> {
        0..self.starts.len()
    }

    /// How many handlers of each model are in each state.
    pub(super) fn counts(&self) -> Vec<Vec<(&'static str, usize)>> {
        let states: &[&str] = if self.sharing.is_used() { &Slot::SHARING_STATES } else { &Slot::STATES };
        let counts = self.models().map(|model| {
            states.iter().map(|state| (*state, self.slots_of(model).filter(|slot| slot.as_str() == *state).count())).collect()
        });
        counts.collect()
    }

    pub(super) fn slots_of(&self, model: usize) -> impl Iterator<Item = &Slot> {
        self.slots.iter().zip(&self.models).filter(move |(_, of)| **of == model).map(|(slot, _)| slot)
    }

    pub(super) fn is_startable(&self, in_flight: &InFlight, model: usize) -> bool {
        in_flight.is_for(model) && !self.runs(in_flight)
    }

    /// Handlers of the model that may be given a job now.
    fn idle(&self, model: usize) -> usize {
        let slots = self.slots.iter().enumerate().filter(|(slot, _)| self.models[*slot] == model);
        slots.filter(|(slot, state)| **state == Slot::Idle && !self.sharing.is_blocked(*slot)).count()
    }

    fn startable(&self, model: usize) -> usize {
        self.messages.iter().filter(|in_flight| self.is_startable(in_flight, model)).count()
    }

    fn directs_for(&self, model: usize) -> usize {
        self.directs.iter().filter(|direct| direct.model == model).count()
    }

    fn free(&self, model: usize) -> usize {
        (self.idle(model) + self.loadable(model)).saturating_sub(self.directs_for(model) + self.startable(model))
    }

    /// Messages that may wait here for the model's handlers while another model's are idle: none where no handler is ready, since another
    /// host's may be. For a model that shares a device, as many as are looked at to see whose model is loaded.
    fn takes_next(&self, model: usize) -> usize {
        let ready = self.slots_of(model).filter(|slot| slot.is_ready()).count() * self.batch;
        if self.shares(model) && self.is_able(model) { ready.max(self.lookahead()) } else { ready }
    }

    pub(super) fn demand(&self) -> usize {
        if self.draining || self.paused {
            return 0;
        }
        let (sharing, alone): (Vec<usize>, Vec<usize>) = self.models().partition(|model| self.shares(*model));
        let alone: usize = alone.into_iter().map(|model| self.wanted(model)).sum();
        let sharing: usize = sharing.into_iter().map(|model| self.wanted(model)).sum();
        (alone + sharing.max(self.looks_ahead_for())).saturating_sub(self.reserved)
    }

    /// Messages that the model's idle handlers could be given beyond those that are here.
    fn wanted(&self, model: usize) -> usize {
        (self.idle(model).saturating_sub(self.directs_for(model)) * self.batch).saturating_sub(self.startable(model))
    }

    fn status(&self, model: usize) -> ModelStatus {
        let Starts { was_ready, failure } = &self.starts[model];
        let state = match failure {
            _ if self.slots_of(model).any(Slot::is_ready) => Model::Hot,
            Some(why) if !was_ready || self.cannot_start(model) => Model::Failed(why.clone()),
            _ if self.is_swapped_in(model) => Model::Unloaded { loading: true },
            _ if self.slots_of(model).any(|slot| matches!(slot, Slot::Unloaded | Slot::Unloading)) => {
                Model::Unloaded { loading: false }
            }
            _ => Model::Loading,
        };
        ModelStatus { model: state, free: self.free(model) }
    }

    /// Whether the last starts of all its handlers have failed, on devices that they share.
    fn cannot_start(&self, model: usize) -> bool {
        let mut slots = (0..self.slots.len()).filter(|slot| self.models[*slot] == model);
        slots.all(|slot| self.sharing.cannot_start(slot))
    }

    pub(super) fn snapshot(&self) -> StatusSnapshot {
        let models: Vec<ModelStatus> = self.models().map(|model| self.status(model)).collect();
        StatusSnapshot {
            models,
            running: self.running().cloned().collect(),
            in_flight: self.messages.len() + self.directs.len(),
            draining: self.draining,
        }
    }
}
