//! The rules of one node's registry of jobs.

use std::time::Duration;

use super::registry::REMEMBERED;
use super::status::SURELY_WAITING;
use super::*;
use crate::job::request::Defaults;

fn job(id: &str) -> Job {
    let defaults = serde_json::json!({
        "model": "tiny-sd", "steps": 20, "guidance_scale": 4.0, "scheduler": "ddim", "width": 64, "height": 64, "seed": 42,
        "prefix": "",
    });
    let defaults: Defaults = serde_json::from_value(defaults).unwrap();
    Job::from_json(serde_json::json!({ "job_id": id, "prompt": "a mug" }).to_string().as_bytes(), &defaults).unwrap()
}

#[test]
fn only_so_many_jobs_are_remembered_and_none_that_runs_is_forgotten() {
    let jobs = Arc::<Jobs>::default();
    assert!(jobs.start(&job("running"), 1));
    for number in 0..REMEMBERED + 5 {
        queue(&jobs, &job(&format!("job-{number}")));
    }
    assert_eq!(jobs.job_status("job-0"), None);
    assert!(jobs.job_status(&format!("job-{}", REMEMBERED + 4)).is_some());
    assert_eq!(jobs.job_status("running").unwrap().state, State::Running);
    assert!(jobs.registry().job_statuses.len() <= REMEMBERED + 1);
}

/// Published twice, a job has one end: what was sent before that asked for it, what was sent later asks for another try.
#[test]
fn a_message_that_was_sent_before_the_same_request_failed_has_its_end() {
    let jobs = Arc::<Jobs>::default();
    let first = job("a");
    let mut other = job("a");
    other.fingerprint = "another".into();
    let before = SystemTime::now() - Duration::from_mins(1);
    assert!(jobs.start(&first, 1));
    assert_eq!(jobs.told_since(&first, before), None, "it runs");
    let problem = Problem { code: "cancelled".into(), message: "somebody cancelled it".into(), field: None, category: None };
    jobs.end("a", State::Cancelled, Some(serde_json::json!(problem)));
    assert_eq!(jobs.told_since(&first, before), Some(problem));
    assert_eq!(jobs.told_since(&first, SystemTime::now()), None, "it is wanted again");
    assert_eq!(jobs.told_since(&other, before), None, "another request");
    queue(&jobs, &first);
    assert_eq!(jobs.told_since(&first, before), None, "it was handed in again");
    assert!(jobs.start(&first, 1));
    jobs.end("a", State::Complete, None);
    assert_eq!(jobs.told_since(&first, before), None, "a complete one is replayed");
}

#[test]
fn the_newest_jobs_come_first_and_each_once() {
    let jobs = Arc::<Jobs>::default();
    for id in ["a", "b", "a", "c"] {
        assert!(jobs.start(&job(id), 1));
        jobs.end(id, State::Failed, None);
    }
    let ids = |most| jobs.newest(most).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!((ids(9), ids(2)), (vec!["c".into(), "a".into(), "b".to_owned()], vec!["c".to_owned(), "a".into()]));
}

/// As a queue that takes the job at once.
#[track_caller]
fn queue(jobs: &Arc<Jobs>, job: &Job) {
    let Acceptance::New(sending) = jobs.accept(job, false) else { panic!("{} is not new", job.id) };
    sending.ended(Ok(()));
}

#[test]
fn an_id_has_one_request() {
    let jobs = Arc::<Jobs>::default();
    let first = job("a");
    let mut other = job("a");
    other.fingerprint = "another".into();
    queue(&jobs, &first);
    assert!(matches!(jobs.accept(&other, false), Acceptance::Conflict));
    assert!(matches!(jobs.accept(&first, false), Acceptance::Known(_)));
    assert_eq!(jobs.cancel("a"), Cancelling::Waiting);
    assert!(!jobs.start(&first, 1), "it was cancelled");
    jobs.end("a", State::Cancelled, None);
    queue(&jobs, &first); // and may be handed in again
    assert!(jobs.start(&first, 1));
    assert!(jobs.start(&other, 1), "the bucket decides");
    assert_eq!(jobs.job_status("a").unwrap().fingerprint, first.fingerprint, "the first one's state is not overwritten");
}

#[test]
fn a_failed_id_is_free_for_a_corrected_request() {
    let jobs = Arc::<Jobs>::default();
    let first = job("a");
    let mut corrected = job("a");
    corrected.fingerprint = "corrected".into();
    queue(&jobs, &first);
    assert!(jobs.start(&first, 1));
    jobs.end("a", State::Failed, None);
    queue(&jobs, &corrected);
    assert!(matches!(jobs.accept(&first, false), Acceptance::Conflict));
}

#[test]
fn nothing_is_promised_to_a_job_that_is_coming_to_its_end() {
    let jobs = Arc::<Jobs>::default();
    let job = job("a");
    queue(&jobs, &job);
    assert_eq!(jobs.cancel("a"), Cancelling::Waiting);
    assert!(matches!(jobs.accept(&job, false), Acceptance::Known(_)));
    assert!(jobs.start(&job, 1), "handed in again before anyone was notified: the wish to cancel is taken back");
    assert_eq!(jobs.cancel("a"), Cancelling::Running);
    assert!(matches!(jobs.accept(&job, false), Acceptance::InProgress(_)), "it will be cancelled");
    jobs.requeue("a", None);
    assert!(!jobs.start(&job, 2));
    assert!(matches!(jobs.accept(&job, false), Acceptance::InProgress(_)), "its caller is being notified");
    jobs.requeue("a", None);
    assert!(matches!(jobs.accept(&job, false), Acceptance::InProgress(_)), "its caller may have been notified");
    jobs.end("a", State::Cancelled, None);
    queue(&jobs, &job);
    assert!(jobs.start(&job, 1));
    jobs.ending("a");
    assert!(matches!(jobs.accept(&job, false), Acceptance::InProgress(_)), "its caller is being notified that it failed");
}

/// A queue may deliver a message before it confirms that it has it.
#[test]
fn a_job_that_was_cancelled_and_is_sent_anew_is_started_however_soon_the_queue_delivers_it() {
    let jobs = Arc::<Jobs>::default();
    let job = job("a");
    for is_shared in [false, true] {
        queue(&jobs, &job);
        assert_eq!(jobs.cancel("a"), Cancelling::Waiting);
        assert!(!jobs.start(&job, 1), "it was cancelled");
        jobs.end("a", State::Cancelled, None);
        let Acceptance::New(sending) = jobs.accept(&job, is_shared) else { panic!("it has ended") };
        assert!(jobs.start(&job, 1), "the wish to cancel was meant for the one that has ended");
        sending.ended(Ok(()));
        assert_eq!(jobs.job_status("a").unwrap().state, State::Running);
        jobs.end("a", State::Failed, None);
    }
    // The same where another host may have ended the job that was to be cancelled.
    queue(&jobs, &job);
    assert_eq!(jobs.cancel("a"), Cancelling::Waiting);
    jobs.registry().job_statuses.get_mut("a").unwrap().since -= SURELY_WAITING + Duration::from_millis(1);
    let Acceptance::New(sending) = jobs.accept(&job, true) else { panic!("another host may have ended it") };
    assert!(jobs.start(&job, 1));
    sending.ended(Ok(()));
}

#[test]
fn jobs_on_their_way_into_the_queue_count_for_their_tenant() {
    let jobs = Arc::<Jobs>::default();
    let of = |id, tenant: &str| Job { tenant: Some(tenant.into()), ..job(id) };
    queue(&jobs, &of("waits", "a"));
    let mut underway = Vec::new();
    for (id, tenant, others) in [("a-1", "a", 1), ("a-2", "a", 2), ("b-1", "b", 0), ("a-3", "a", 3)] {
        let Acceptance::New(sending) = jobs.accept(&of(id, tenant), false) else { panic!("{id} is not new") };
        assert_eq!(sending.waiting_of_tenant(), others, "{id}");
        underway.push(sending);
    }
    assert_eq!((jobs.waiting_of_tenant(&of("a-4", "a")), jobs.waiting_of_tenant(&of("a-3", "a"))), (4, 3));
    for sending in underway {
        sending.ended(Ok(()));
    }
    assert_eq!(jobs.waiting_of_tenant(&of("a-4", "a")), 4);
}

#[test]
fn a_caller_who_waits_holds_the_id_until_the_job_has_ended() {
    let jobs = Arc::<Jobs>::default();
    let mut other = job("a");
    let job = job("a");
    other.fingerprint = "another".into();
    assert!(jobs.start(&job, 1));
    jobs.end("a", State::Failed, None);
    let claim = jobs.claim(&job, false).unwrap();
    assert_eq!(jobs.job_status("a").unwrap().state, State::Queued);
    drop(claim);
    assert_eq!(jobs.job_status("a").unwrap().state, State::Failed, "it was never started");
    let claim = jobs.claim(&job, false).unwrap();
    assert!(matches!(jobs.accept(&job, false), Acceptance::InProgress(_)), "no queue has it");
    assert!(matches!(jobs.claim(&job, false), Err(Acceptance::InProgress(_))));
    assert!(matches!(jobs.claim(&other, false), Err(Acceptance::Conflict)));
    assert!(jobs.start(&job, 1));
    assert!(matches!(jobs.accept(&job, false), Acceptance::InProgress(_)), "it runs, and no queue has it");
    jobs.end("a", State::Cancelled, None);
    drop(claim);
    queue(&jobs, &job);
    assert!(matches!(jobs.claim(&job, false), Err(Acceptance::InProgress(_))), "a queue has it");
}

#[test]
fn a_job_that_waits_in_a_shared_queue_is_soon_not_known_to_wait() {
    let jobs = Arc::<Jobs>::default();
    let first = job("a");
    let mut other = job("a");
    other.fingerprint = "another".into();
    queue(&jobs, &first);
    assert!(matches!(jobs.accept(&first, true), Acceptance::Known(_)), "a moment ago it was put there");
    assert!(matches!(jobs.accept(&other, true), Acceptance::Conflict));
    let long_ago = Instant::now().checked_sub(SURELY_WAITING + Duration::from_millis(1)).unwrap();
    jobs.registry().job_statuses.get_mut("a").unwrap().since = long_ago;
    assert!(matches!(jobs.accept(&first, false), Acceptance::Known(_)), "no one else reads the queue");
    assert!(matches!(jobs.accept(&other, false), Acceptance::Conflict));
    assert!(jobs.claim(&first, true).is_ok());
    assert!(matches!(jobs.accept(&other, true), Acceptance::New(_)), "the bucket decides");
    assert!(matches!(jobs.accept(&first, true), Acceptance::New(_)), "another host may have ended it");
    assert!(jobs.start(&first, 1));
    assert!(matches!(jobs.accept(&first, true), Acceptance::Known(_)), "this host has it in flight");
}
