//! A model of one job's life, small enough that every interleaving is looked at: a caller, a queue, two hosts, the bucket, the receiver.
//!
//! Transitions have the names of the code that makes them. The job may be sent again after a failure, and a job that failed may succeed in
//! its next run. One walk has each message in the hands of one host at a time, as a queue promises; the other one does not, and
//! publishes the job twice. Time has no place in it but for one rule: who looks for notes writes its record before whoever notes a
//! failure afterwards looks for one. `store::failed` keeps it, by waiting.

mod life;

use std::collections::{HashMap, VecDeque};

use self::life::{Faults, Life, Rules};

/// How a walk through all states ended.
struct Walk {
    states: usize,
    /// The first broken promise that was found, with the shortest way to it.
    broken: Option<(&'static str, Vec<&'static str>)>,
}

/// Breadth first, so that the way to what is broken is the shortest one.
fn walk(rules: Rules, faults: Faults) -> Walk {
    let start = Life::start(faults);
    let mut came_from: HashMap<Life, Option<(Life, &'static str)>> = HashMap::from([(start, None)]);
    let mut waiting = VecDeque::from([start]);
    while let Some(life) = waiting.pop_front() {
        if let Some(broken) = life.broken() {
            return Walk { states: came_from.len(), broken: Some((broken, way(&came_from, life))) };
        }
        for (step, next) in life.steps(rules) {
            came_from.entry(next).or_insert_with(|| {
                waiting.push_back(next);
                Some((life, step))
            });
        }
    }
    Walk { states: came_from.len(), broken: None }
}

fn way(came_from: &HashMap<Life, Option<(Life, &'static str)>>, end: Life) -> Vec<&'static str> {
    let mut steps = Vec::new();
    let mut life = end;
    while let Some(Some((before, step))) = came_from.get(&life) {
        steps.push(*step);
        life = *before;
    }
    steps.reverse();
    steps
}

#[test]
#[expect(clippy::print_stdout, reason = "a figure that is asked for")]
fn every_promise_holds_in_every_interleaving() {
    for (what, faults) in [("one host each", Faults::ONE_HOST_EACH), ("twins", Faults::TWINS)] {
        let Walk { states, broken } = walk(Rules::OURS, faults);
        println!("{what}: {states} states");
        assert_eq!(broken, None, "{what}");
        assert!(states > 100_000, "{what}: {states} states are no life");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a figure that is asked for")]
fn each_old_rule_breaks_the_promise_that_it_was_reported_for() {
    let ours = Rules::OURS;
    for (rule, rules, promise) in [
        ("a repetition is answered 202 while the send is under way", Rules { waits_for_send: false, ..ours }, "202 is held"),
        ("a repetition is answered 202 because /infer runs the job", Rules { infer_is_no_queue: false, ..ours }, "202 is held"),
        (
            "a cancelled job is answered 202 and then cancelled",
            Rules { repeat_takes_cancel_back: false, ..ours },
            "202 is held",
        ),
        ("a cancelled job is not looked for", Rules { cancel_looks: false, ..ours }, "never two ends"),
        ("a lost answer to the record is a failure", Rules { lost_answer_waits: false, ..ours }, "record => never failed"),
        ("a bucket that is away is a failure", Rules { unknown_waits: false, ..ours }, "never two ends"),
        ("what nobody takes is reported as failed", Rules { given_up_is_no_end: false, ..ours }, "record => never failed"),
        ("what nobody takes is dropped", Rules { given_up_is_kept: false, ..ours }, "202 is held"),
        ("an outage uses up attempts", Rules { outage_is_no_attempt: false, ..ours }, "an outage ends no job"),
        ("a result is lost with its attempt", Rules { result_is_held: false, ..ours }, "an outage generates nothing twice"),
        ("a failure is told and not noted", Rules { failure_is_noted: false, ..ours }, "never two ends"),
        ("a failure is noted of the job", Rules { note_is_of_one_message: false, ..ours }, "a failed id is free"),
    ] {
        let Walk { states, broken } = walk(rules, Faults::ONE_HOST_EACH);
        let (broken, way) = broken.unwrap_or_else(|| panic!("{rule}: {states} states, and nothing is broken"));
        println!("{rule}: {broken}: {}", way.join(", "));
        let two_ends = ["never two ends", "record => never failed"];
        assert!(broken == promise || two_ends.contains(&promise) && two_ends.contains(&broken), "{rule}: {broken} {way:?}");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a figure that is asked for")]
fn each_rule_for_twins_is_needed() {
    let ours = Rules::OURS;
    for (rule, rules) in [
        ("the record is looked for before the failure is noted", Rules { notes_before_it_looks: false, ..ours }),
        ("nobody looks for a failure beside it", Rules { looks_for_notes: false, ..ours }),
        ("the record comes at any time after the look", Rules { look_and_record_are_one: false, ..ours }),
        ("notes of earlier tries count", Rules { earlier_notes_are_passed_over: false, ..ours }),
        ("the note goes when its message is settled", Rules { settled_note_stays: false, ..ours }),
    ] {
        let Walk { states, broken } = walk(rules, Faults::TWINS);
        let (broken, way) = broken.unwrap_or_else(|| panic!("{rule}: {states} states, and nothing is broken"));
        println!("{rule}: {broken}: {}", way.join(", "));
    }
}
