//! What is in flight and who does what, and which message a handler is given next.

use std::collections::VecDeque;
use std::sync::Arc;

use super::assignment::Assignment;
use super::slot::Slot;
use crate::host::in_flight::InFlight;
use crate::host::job_service::{Direct, Model, ModelStatus, StatusSnapshot};
use crate::protocol::deferral::DeferReason;

pub(super) struct State {
    /// Messages of one event at most.
    batch: usize,
    /// Of each slot, the place of its handler's model in the catalogue.
    models: Vec<usize>,
    pub(super) slots: Vec<Slot>,
    pub(super) messages: VecDeque<InFlight>,
    /// Messages that are looked up before they may be started.
    pub(super) reserved: usize,
    pub(super) directs: VecDeque<Direct>,
    pub(super) draining: bool,
    /// The store is away: no message is started.
    pub(super) paused: bool,
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
    pub(super) fn new(models: Vec<usize>, batch: usize) -> Self {
        Self {
            batch,
            starts: vec![Starts::default(); models.iter().max().map_or(0, |last| last + 1)],
            slots: vec![Slot::Starting; models.len()],
            models,
            messages: VecDeque::new(),
            reserved: 0,
            directs: VecDeque::new(),
            draining: false,
            paused: false,
        }
    }

    /// Notes what the handler in `slot` being `state` says of its model's starts.
    pub(super) fn note(&mut self, slot: usize, state: &Slot) {
        let starts = &mut self.starts[self.models[slot]];
        match state {
            Slot::Idle => starts.was_ready = true,
            Slot::Down(why) => starts.failure = Some(why.clone()),
            Slot::Starting | Slot::Busy(_) => {}
        }
    }

    pub(super) fn assign(&mut self, slot: usize) -> Option<Assignment> {
        if self.draining {
            return None;
        }
        let model = self.models[slot];
        let direct = self.directs.iter().position(|direct| direct.model == model);
        let assignment = match direct.and_then(|place| self.directs.remove(place)) {
            Some(direct) => Assignment::Direct(direct),
            None => Assignment::Messages(self.batch(model)?),
        };
        self.slots[slot] = Slot::Busy(assignment.job_ids());
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
        if self.draining || !idles || starts {
            return Vec::new();
        }
        let mut kept = vec![0; self.starts.len()];
        let mut blocks = Vec::with_capacity(self.messages.len());
        for in_flight in &self.messages {
            let same_source = self.messages.iter().filter(|other| Arc::ptr_eq(&other.source, &in_flight.source));
            let fills = in_flight.source.window().is_some_and(|window| same_source.count() >= window.div_ceil(2));
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
    pub(super) fn counts(&self) -> Vec<[(&'static str, usize); 4]> {
        let counts = self
            .models()
            .map(|model| Slot::STATES.map(|state| (state, self.slots_of(model).filter(|slot| slot.as_str() == state).count())));
        counts.collect()
    }

    fn slots_of(&self, model: usize) -> impl Iterator<Item = &Slot> {
        self.slots.iter().zip(&self.models).filter(move |(_, of)| **of == model).map(|(slot, _)| slot)
    }

    fn is_startable(&self, in_flight: &InFlight, model: usize) -> bool {
        in_flight.is_for(model) && !self.runs(in_flight)
    }

    fn idle(&self, model: usize) -> usize {
        self.slots_of(model).filter(|slot| **slot == Slot::Idle).count()
    }

    fn startable(&self, model: usize) -> usize {
        self.messages.iter().filter(|in_flight| self.is_startable(in_flight, model)).count()
    }

    fn directs_for(&self, model: usize) -> usize {
        self.directs.iter().filter(|direct| direct.model == model).count()
    }

    fn free(&self, model: usize) -> usize {
        self.idle(model).saturating_sub(self.directs_for(model) + self.startable(model))
    }

    /// Messages that may wait here for the model's handlers while another model's are idle: none where no handler is ready, since another
    /// host's may be.
    fn takes_next(&self, model: usize) -> usize {
        self.slots_of(model).filter(|slot| slot.is_ready()).count() * self.batch
    }

    pub(super) fn demand(&self) -> usize {
        if self.draining || self.paused {
            return 0;
        }
        let wanted = self.models().map(|model| {
            (self.idle(model).saturating_sub(self.directs_for(model)) * self.batch).saturating_sub(self.startable(model))
        });
        wanted.sum::<usize>().saturating_sub(self.reserved)
    }

    fn status(&self, model: usize) -> ModelStatus {
        let Starts { was_ready, failure } = &self.starts[model];
        let state = match failure {
            _ if self.slots_of(model).any(Slot::is_ready) => Model::Hot,
            Some(why) if !was_ready => Model::Failed(why.clone()),
            _ => Model::Loading,
        };
        ModelStatus { model: state, free: self.free(model) }
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
