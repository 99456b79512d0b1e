//! Who is loaded and unloaded, for devices at all kinds of moments.

use std::time::Duration;

use tokio::time::Instant;

use super::{Member, Plan, Rules, Stage, Starts, plan, would_load};
use crate::clock::later;

const WAIT: Duration = Duration::from_mins(1);

/// A moment long after all that happened before.
struct Clock(Instant);

impl Clock {
    fn new() -> Self {
        Self(later(Instant::now(), Duration::from_hours(1)))
    }

    fn rules(memory_mib: u64) -> Rules {
        Rules { memory_mib, max_wait: WAIT }
    }

    fn plan(&self, memory_mib: u64, members: &[Member]) -> Plan {
        plan(members, Self::rules(memory_mib), self.0)
    }

    /// A model that was loaded long ago and used `seconds` ago.
    fn idle(&self, memory_mib: u64, seconds: u64) -> Member {
        Member {
            memory_mib,
            stage: Stage::Idle,
            starts: Starts::Succeeded,
            waited: None,
            ready_at: self.0 - Duration::from_mins(30),
            used_at: self.0 - Duration::from_secs(seconds),
            has_served: true,
            failures: 0,
        }
    }

    fn busy(&self, memory_mib: u64) -> Member {
        Member { stage: Stage::Busy, ..self.idle(memory_mib, 1) }
    }

    fn unloaded(&self, memory_mib: u64) -> Member {
        Member { stage: Stage::Unloaded, ..self.idle(memory_mib, 100) }
    }
}

impl Member {
    fn waiting(self, seconds: u64) -> Self {
        Self { waited: Some(Duration::from_secs(seconds)), ..self }
    }

    fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }
}

#[test]
fn at_the_start_as_many_are_loaded_in_their_order_as_there_is_room_for() {
    let clock = Clock::new();
    let untried = |memory_mib| Member { starts: Starts::Untried, ..clock.unloaded(memory_mib) };
    let models = [untried(4), untried(8), untried(3), untried(1)];
    assert_eq!(clock.plan(8, &models), Plan { load: vec![0, 2, 3], ..Plan::default() });
}

#[test]
fn a_job_has_its_model_loaded_into_free_memory_and_nobody_goes() {
    let clock = Clock::new();
    let models = [clock.idle(4, 10), clock.unloaded(4).waiting(0)];
    assert_eq!(clock.plan(8, &models), Plan { load: vec![1], ..Plan::default() });
}

#[test]
fn what_was_not_used_for_longest_goes_and_no_more_than_that() {
    let clock = Clock::new();
    let models = [clock.idle(4, 10), clock.idle(4, 20), clock.unloaded(4).waiting(0)];
    assert_eq!(clock.plan(8, &models), Plan { unload: vec![(1, 2)], next: vec![2], ..Plan::default() });
    let models = [clock.idle(2, 30), clock.idle(6, 20), clock.unloaded(6).waiting(0)];
    assert_eq!(clock.plan(8, &models).unload, [(1, 2)], "the small one would be of no use");
    let models = [clock.idle(6, 20), clock.idle(2, 30), clock.unloaded(4).waiting(0)];
    assert_eq!(clock.plan(8, &models).unload, [(0, 2)]);
}

#[test]
fn nothing_is_loaded_before_the_memory_is_free() {
    let clock = Clock::new();
    let models = [clock.idle(4, 10).at(Stage::Unloading), clock.unloaded(8).waiting(1)];
    assert_eq!(clock.plan(8, &models), Plan { next: vec![1], ..Plan::default() });
    let models = [clock.unloaded(4), clock.unloaded(8).waiting(1)];
    assert_eq!(clock.plan(8, &models), Plan { load: vec![1], ..Plan::default() });
}

#[test]
fn loaded_models_with_jobs_of_their_own_and_busy_ones_stay_until_someone_has_waited_for_too_long() {
    let clock = Clock::new();
    for loaded in [clock.idle(8, 1).waiting(2), clock.busy(8), clock.busy(8).waiting(2)] {
        let models = [loaded, clock.unloaded(8).waiting(59)];
        let planned = clock.plan(8, &models);
        assert_eq!(planned, Plan { due: Some(clock.0 + Duration::from_secs(1)), ..Plan::default() });
    }
    let starving = clock.unloaded(8).waiting(60);
    let idle = clock.plan(8, &[clock.idle(8, 1).waiting(2), starving.clone()]);
    assert_eq!(idle, Plan { unload: vec![(0, 1)], next: vec![1], ..Plan::default() });
    let busy = clock.plan(8, &[clock.busy(8).waiting(2), starving]);
    assert_eq!(
        busy,
        Plan { blocked: vec![0], next: vec![1], ..Plan::default() },
        "a busy one ends its job, and begins no other"
    );
}

#[test]
fn a_model_that_was_just_loaded_has_time_for_its_own_jobs() {
    let clock = Clock::new();
    let starving = clock.unloaded(8).waiting(300);
    let fresh = Member { ready_at: clock.0 - Duration::from_secs(20), ..clock.idle(8, 1).waiting(5) };
    let planned = clock.plan(8, &[fresh.clone(), starving.clone()]);
    assert_eq!(planned, Plan { due: Some(clock.0 + Duration::from_secs(40)), ..Plan::default() });
    let unserved = Member { has_served: false, ..clock.idle(8, 1).waiting(5) };
    assert_eq!(clock.plan(8, &[unserved, starving.clone()]), Plan::default(), "one job at least");
    let loading = clock.idle(8, 1).waiting(5).at(Stage::Loading);
    assert_eq!(clock.plan(8, &[loading, starving.clone()]), Plan::default());
    // Its jobs have gone elsewhere.
    let unneeded = Member { has_served: false, waited: None, ..fresh };
    assert_eq!(clock.plan(8, &[unneeded, starving]).unload, [(0, 1)]);
}

#[test]
fn the_one_that_has_waited_for_longest_comes_first_and_no_one_takes_its_room() {
    let clock = Clock::new();
    let models = [clock.unloaded(4).waiting(5), clock.unloaded(6).waiting(9)];
    assert_eq!(clock.plan(8, &models).load, [1]);
    // 6 end for the older one, and the younger has what is free.
    let models = [clock.unloaded(2).waiting(5), clock.unloaded(6).waiting(9), clock.idle(6, 1).at(Stage::Unloading)];
    assert_eq!(clock.plan(8, &models), Plan { load: vec![0], next: vec![1], ..Plan::default() });
    let models = [clock.unloaded(2).waiting(5), clock.unloaded(8).waiting(9), clock.idle(6, 1).at(Stage::Unloading)];
    assert_eq!(clock.plan(8, &models).load, [0; 0], "all of it is for the older one");
    // A starving one whose room cannot be made yet keeps others from what is free.
    let loading = clock.idle(6, 1).at(Stage::Loading);
    let models = [clock.unloaded(2).waiting(5), clock.unloaded(8).waiting(60), loading];
    assert_eq!(clock.plan(8, &models).load, [0; 0]);
    let models = [clock.unloaded(2).waiting(5), clock.unloaded(8).waiting(9), models[2].clone()];
    assert_eq!(clock.plan(8, &models).load, [0], "one that may still wait does not");
}

#[test]
fn a_model_that_cannot_be_loaded_leaves_its_room_to_others_and_is_tried_again() {
    let clock = Clock::new();
    let down = Member { stage: Stage::Down, starts: Starts::Failed, ..clock.unloaded(8).waiting(100) };
    assert_eq!(clock.plan(8, &[down, clock.unloaded(8).waiting(1)]).load, [1]);
    let failed = Member { starts: Starts::Failed, ..clock.unloaded(8) };
    assert_eq!(clock.plan(8, &[failed.clone(), clock.unloaded(8)]).load, [0]);
    let lately = clock.plan(8, &[failed.clone(), clock.idle(8, 50)]);
    assert_eq!(lately, Plan { due: Some(clock.0 + Duration::from_secs(10)), ..Plan::default() });
    assert_eq!(clock.plan(8, &[failed.clone(), clock.idle(8, 60)]).unload, [(1, 0)]);
    assert_eq!(clock.plan(8, &[failed.clone(), clock.busy(8)]), Plan::default());
    // After each failure what makes room has to have been unused for twice as long.
    let again = Member { failures: 2, ..failed };
    assert_eq!(clock.plan(8, &[again.clone(), clock.idle(8, 239)]).unload, []);
    assert_eq!(clock.plan(8, &[again.clone(), clock.idle(8, 240)]).unload, [(1, 0)]);
    let often = Member { failures: u32::MAX, ..again.clone() };
    assert_eq!(clock.plan(8, &[often, clock.idle(8, 3_600)]).unload, []);
    // So is one that was ready once and cannot be loaded any more.
    let no_more = Member { starts: Starts::Lost, ..again };
    assert_eq!(clock.plan(8, &[no_more.clone(), clock.idle(8, 239)]).unload, []);
    assert_eq!(clock.plan(8, &[no_more, clock.idle(8, 240)]).unload, [(1, 0)]);
    // One that was ready once and ended comes back by itself only where there is room: until then a job brings it.
    let lost = Member { starts: Starts::Lost, ..clock.unloaded(8) };
    assert_eq!(clock.plan(8, &[lost.clone(), clock.idle(8, 600)]), Plan::default());
    assert_eq!(clock.plan(16, &[lost, clock.idle(8, 600)]).load, [0]);
}

#[test]
fn whether_a_job_would_be_begun_at_once_is_what_would_be_planned_for_it() {
    let clock = Clock::new();
    let would = |loaded| would_load(&[loaded, clock.unloaded(8)], 1, Clock::rules(8), clock.0);
    assert!(would(clock.idle(8, 0)));
    assert!(!would(clock.busy(8)));
    assert!(!would(clock.idle(8, 0).waiting(0)));
}

/// Whatever happens: memory is never promised twice, no busy model is unloaded, and each gets its turn.
#[test]
fn every_model_gets_its_turn_while_all_are_wanted_all_the_time() {
    let mut clock = Clock::new();
    let sizes = [3, 5, 8, 2];
    let mut models: Vec<Member> = sizes.iter().map(|mib| Member { starts: Starts::Untried, ..clock.unloaded(*mib) }).collect();
    let mut turns = [0; 4];
    let mut since: Vec<Instant> = vec![clock.0; 4];
    let mut longest = Duration::ZERO;
    for _ in 0..4_000 {
        clock.0 += Duration::from_secs(1);
        for (place, model) in models.iter_mut().enumerate() {
            model.waited = Some(clock.0 - since[place]);
        }
        let planned = clock.plan(8, &models);
        for place in planned.load {
            models[place].stage = Stage::Loading;
        }
        for (place, _) in planned.unload {
            assert_eq!(models[place].stage, Stage::Idle);
            models[place].stage = Stage::Unloading;
        }
        let used: u64 = models.iter().filter(|model| model.has_memory()).map(|model| model.memory_mib).sum();
        assert!(used <= 8, "{models:?}");
        for (place, model) in models.iter_mut().enumerate() {
            model.stage = match model.stage {
                Stage::Loading => {
                    *model = Member { ready_at: clock.0, has_served: false, ..model.clone() };
                    Stage::Idle
                }
                Stage::Idle if !planned.blocked.contains(&place) => {
                    *model = Member { used_at: clock.0, has_served: true, ..model.clone() };
                    turns[place] += 1;
                    longest = longest.max(clock.0 - since[place]);
                    since[place] = clock.0;
                    Stage::Busy
                }
                Stage::Busy => Stage::Idle,
                Stage::Unloading => Stage::Unloaded,
                stage => stage,
            };
        }
    }
    assert!(turns.iter().all(|jobs| *jobs > 100), "{turns:?}");
    // A wait of its own, a turn of each that came before, and some seconds to load and unload.
    assert!(longest < WAIT * 4, "{longest:?}");
}
