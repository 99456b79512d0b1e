//! Which models of one device are loaded, and which are unloaded for them: decided from what is known at one moment, without a process.

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::later;

/// What the process of a handler is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is none.
    Unloaded,
    Loading,
    Idle,
    Busy,
    /// It was asked to end, and still has its memory.
    Unloading,
    /// It ended by itself; until the pause after that is over there is no other.
    Down,
}

/// How the starts of a handler went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Starts {
    Untried,
    /// None has succeeded.
    Failed,
    Succeeded,
    /// One has succeeded, and its process ended by itself.
    Lost,
}

/// The handler of one model on the device.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) memory_mib: u64,
    pub(super) stage: Stage,
    pub(super) starts: Starts,
    /// How long the oldest job has waited that it is to do; none: no job waits for it.
    pub(super) waited: Option<Duration>,
    /// When it had its model ready.
    pub(super) ready_at: Instant,
    /// When it was given a job or was done with one, or got ready.
    pub(super) used_at: Instant,
    /// It was given a job since it got ready.
    pub(super) has_served: bool,
    /// Starts in a row that have failed.
    pub(super) failures: u32,
}

/// What holds for every device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Of all processes together.
    pub(super) memory_mib: u64,
    /// A job waits so long for jobs of loaded models; and a model that was loaded has as long for its own.
    pub(super) max_wait: Duration,
}

/// What is to be done now, by the places of the members.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) load: Vec<usize>,
    /// Each with the member in whose favour.
    pub(super) unload: Vec<(usize, usize)>,
    /// Busy members that are given no further job: they are unloaded next.
    pub(super) blocked: Vec<usize>,
    /// Members that are loaded as soon as the processes that make room for them have ended.
    pub(super) next: Vec<usize>,
    /// When something is to be done although nothing else happens.
    pub(super) due: Option<Instant>,
}

/// Decides for one device. Members with waiting jobs come first, the one whose job has waited longest before all others.
#[must_use]
pub(super) fn plan(members: &[Member], rules: Rules, now: Instant) -> Plan {
    let mut planning = Planning::new(members, rules, now);
    let mut wanted: Vec<usize> = (0..members.len()).filter(|place| members[*place].is_wanted()).collect();
    wanted.sort_by_key(|place| std::cmp::Reverse(members[*place].waited));
    for place in wanted {
        planning.load_for_jobs(place);
    }
    let is_quiet = members.iter().all(|member| member.stage != Stage::Down);
    for (place, member) in members.iter().enumerate() {
        if member.stage == Stage::Unloaded && member.waited.is_none() {
            match member.starts {
                // At the start of the host, one after the other for as long as there is room.
                Starts::Untried if is_quiet => _ = planning.take(place),
                Starts::Lost if member.failures == 0 => _ = planning.take(place),
                Starts::Failed | Starts::Lost => planning.load_again(place),
                Starts::Untried | Starts::Succeeded => {}
            }
        }
    }
    planning.plan
}

/// Whether a job that comes now would have its model loaded at once.
#[must_use]
pub(super) fn would_load(members: &[Member], place: usize, rules: Rules, now: Instant) -> bool {
    let mut members = members.to_vec();
    members[place].waited.get_or_insert(Duration::ZERO);
    let plan = plan(&members, rules, now);
    plan.load.contains(&place) || plan.next.contains(&place)
}

impl Member {
    fn is_wanted(&self) -> bool {
        self.stage == Stage::Unloaded && self.waited.is_some()
    }

    fn has_memory(&self) -> bool {
        !matches!(self.stage, Stage::Unloaded | Stage::Down)
    }
}

struct Planning<'a> {
    members: &'a [Member],
    rules: Rules,
    now: Instant,
    /// MiB that no process has.
    free_mib: u64,
    /// MiB of processes that end.
    ending_mib: u64,
    /// Someone waits for too long: no one else is loaded before.
    closed: bool,
    plan: Plan,
}

impl<'a> Planning<'a> {
    fn new(members: &'a [Member], rules: Rules, now: Instant) -> Self {
        let used: u64 = members.iter().filter(|member| member.has_memory()).map(|member| member.memory_mib).sum();
        let ending = members.iter().filter(|member| member.stage == Stage::Unloading).map(|member| member.memory_mib).sum();
        let free_mib = rules.memory_mib.saturating_sub(used);
        Self { members, rules, now, free_mib, ending_mib: ending, closed: false, plan: Plan::default() }
    }

    /// Loads it into free memory, or has it wait for processes that end anyway. Whether either will do.
    fn take(&mut self, place: usize) -> bool {
        let needed = self.members[place].memory_mib;
        if self.closed || needed > self.free_mib + self.ending_mib {
            return false;
        }
        if needed <= self.free_mib {
            self.free_mib -= needed;
            self.plan.load.push(place);
        } else {
            // It has to wait anyway: what is free already may be of use to others.
            let ending = needed.min(self.ending_mib);
            self.ending_mib -= ending;
            self.free_mib -= needed - ending;
            self.plan.next.push(place);
        }
        true
    }

    fn load_for_jobs(&mut self, place: usize) {
        if self.take(place) {
            return;
        }
        let waited = self.members[place].waited.unwrap_or_default();
        let left = self.rules.max_wait.saturating_sub(waited);
        if left.is_zero() {
            self.load_for_starving(place);
        } else if !self.unload_for(place, |member| member.stage == Stage::Idle && member.waited.is_none()) {
            self.wake_at_first(std::iter::once(later(self.now, left)));
        }
    }

    /// Its job has waited for long enough: whoever has had a turn makes room, and no one younger comes before it.
    fn load_for_starving(&mut self, place: usize) {
        let max_wait = self.rules.max_wait;
        let now = self.now;
        let has_room = self.unload_for(place, |member| {
            let has_had_its_time = member.has_served && later(member.ready_at, max_wait) <= now;
            matches!(member.stage, Stage::Idle | Stage::Busy) && (member.waited.is_none() || has_had_its_time)
        });
        if !has_room {
            self.closed = true;
            let ends = self.members.iter().filter(|member| member.has_served).map(|member| later(member.ready_at, max_wait));
            self.wake_at_first(ends);
        }
    }

    /// Its last start has failed, and no job waits for it: it may have the room of what has not been used for a while. That is twice as long after each
    /// failure, for whoever makes room for nothing has to be loaded again for its next job.
    fn load_again(&mut self, place: usize) {
        const MAX_DOUBLINGS: u32 = 10;
        let unused = self.rules.max_wait.saturating_mul(1 << self.members[place].failures.min(MAX_DOUBLINGS));
        let now = self.now;
        let is_idle = |member: &Member| member.stage == Stage::Idle && member.waited.is_none();
        if !self.take(place) && !self.unload_for(place, |member| is_idle(member) && later(member.used_at, unused) <= now) {
            let ends = self.members.iter().filter(|member| is_idle(member)).map(|member| later(member.used_at, unused));
            self.wake_at_first(ends);
        }
    }

    /// Unloads what was not used for the longest time, as much as it takes; nothing where that would not do. A busy one is blocked
    /// instead, and unloaded when it is idle.
    fn unload_for(&mut self, place: usize, may_go: impl Fn(&Member) -> bool) -> bool {
        if self.closed {
            return false;
        }
        let missing = self.members[place].memory_mib.saturating_sub(self.free_mib + self.ending_mib);
        let mut going: Vec<usize> =
            (0..self.members.len()).filter(|other| self.may_go(*other) && may_go(&self.members[*other])).collect();
        going.sort_by_key(|other| self.members[*other].reluctance());
        let mut gained = 0;
        let enough = going.iter().position(|other| {
            gained += self.members[*other].memory_mib;
            gained >= missing
        });
        let Some(last) = enough else { return false };
        going.truncate(last + 1);
        // One that came first may be too much now: what was used more lately stays.
        for other in going.clone().into_iter().rev() {
            let memory = self.members[other].memory_mib;
            if gained - memory >= missing {
                gained -= memory;
                going.retain(|kept| *kept != other);
            }
        }
        for other in going {
            if self.members[other].stage == Stage::Idle {
                self.plan.unload.push((other, place));
            } else {
                self.plan.blocked.push(other);
            }
        }
        self.ending_mib += gained;
        self.take(place)
    }

    /// Whether it does not make room for another one already.
    fn may_go(&self, place: usize) -> bool {
        !self.plan.blocked.contains(&place) && !self.plan.unload.iter().any(|(other, _)| *other == place)
    }

    /// Something may be done that is not done now, at the first of these moments that is still to come.
    fn wake_at_first(&mut self, moments: impl Iterator<Item = Instant>) {
        let now = self.now;
        self.plan.due = self.plan.due.into_iter().chain(moments.filter(|moment| *moment > now)).min();
    }
}

impl Member {
    /// Those with the least go first.
    fn reluctance(&self) -> (bool, bool, Instant) {
        (self.stage == Stage::Busy, self.waited.is_some(), self.used_at)
    }
}
