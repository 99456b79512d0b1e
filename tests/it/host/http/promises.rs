//! 202 means that a queue has the job now, at any time and for every caller.

use std::sync::atomic::Ordering;
use std::time::Duration;

use atelier::host::jobs::State;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{Front, assert_problem, generate, job_of, read};
use crate::servers::DEADLINE;

/// A request of its own, in a task.
fn ask(front: &Front, path: &str, body: &Value) -> JoinHandle<(StatusCode, Value)> {
    tokio::spawn(read(front.request(Method::POST, path).json(body)))
}

/// Answers of requests that are not to be answered yet.
async fn assert_all_wait(requests: &[JoinHandle<(StatusCode, Value)>]) {
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (number, request) in requests.iter().enumerate() {
        assert!(!request.is_finished(), "request {number} was answered although no queue has the job");
    }
}

#[tokio::test]
async fn a_repetition_waits_for_the_send_that_is_under_way() {
    let front = Front::open().await;
    front.shelf.hangs.send_replace(true);
    let body = generate("job-1");
    let requests: Vec<_> = (0..3).map(|_| ask(&front, "/generate", &body)).collect();
    assert_all_wait(&requests).await;
    assert_eq!(front.get("/jobs/job-1").await.1["state"], "sending", "no one has it yet");
    front.shelf.hangs.send_replace(false);
    for request in requests {
        assert_eq!(request.await.unwrap().0, StatusCode::ACCEPTED);
    }
    assert_eq!(front.shelf.taken().len(), 1, "sent once");
    assert_eq!(front.get("/jobs/job-1").await.1["state"], "queued");
}

#[tokio::test]
async fn a_send_that_fails_fails_for_all_who_waited_for_it() {
    let front = Front::open().await;
    front.shelf.hangs.send_replace(true);
    let body = generate("job-1");
    let mut requests: Vec<_> = (0..3).map(|_| ask(&front, "/generate", &body)).collect();
    assert_all_wait(&requests).await;
    // The first caller abandons it; what it has begun goes on.
    requests.remove(0).abort();
    front.shelf.away.store(true, Ordering::SeqCst);
    front.shelf.hangs.send_replace(false);
    for request in requests {
        let (status, answer) = request.await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
        assert_problem(&answer, "queue_unavailable", None, "the broker is away");
    }
    assert_eq!(front.get("/jobs/job-1").await.0, StatusCode::NOT_FOUND);
    front.shelf.away.store(false, Ordering::SeqCst);
    assert_eq!(front.post("/generate", &body).await.0, StatusCode::ACCEPTED, "and the id is free");
    assert_eq!(front.shelf.taken().len(), 1);
}

#[tokio::test]
async fn another_request_under_an_id_that_is_being_sent_waits_to_know_whether_it_is_a_conflict() {
    let other = json!({ "job_id": "job-1", "prompt": "another" });
    for (queue_is_away, expected) in [(false, StatusCode::CONFLICT), (true, StatusCode::ACCEPTED)] {
        let front = Front::open().await;
        front.shelf.hangs.send_replace(true);
        let first = ask(&front, "/generate", &generate("job-1"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let second = [ask(&front, "/generate", &other)];
        assert_all_wait(&second).await;
        front.shelf.away.store(queue_is_away, Ordering::SeqCst);
        front.shelf.hangs.send_replace(false);
        let first = first.await.unwrap().0;
        // Only the first send finds the queue away; the second may have come too early, and then it says so.
        front.shelf.away.store(false, Ordering::SeqCst);
        let [second] = second;
        let second = second.await.unwrap().0;
        if queue_is_away {
            assert_eq!(first, StatusCode::SERVICE_UNAVAILABLE);
            assert_ne!(second, StatusCode::CONFLICT, "the id belongs to no one");
        } else {
            assert_eq!((first, second), (StatusCode::ACCEPTED, expected));
        }
    }
}

#[tokio::test]
async fn a_job_that_is_delivered_before_its_send_is_confirmed_keeps_its_state() {
    let front = Front::open().await;
    front.shelf.hangs.send_replace(true);
    let body = generate("job-1");
    let request = ask(&front, "/generate", &body);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(front.jobs.start(&job_of(&body), 1), "the queue was faster than its confirmation");
    front.shelf.hangs.send_replace(false);
    assert_eq!(request.await.unwrap().0, StatusCode::ACCEPTED);
    assert_eq!(front.get("/jobs/job-1").await.1["state"], "running");
}

#[tokio::test]
async fn a_cancel_waits_for_the_send_that_is_under_way() {
    let front = Front::open().await;
    front.shelf.hangs.send_replace(true);
    let request = ask(&front, "/generate", &generate("job-1"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let cancel = [tokio::spawn(read(front.request(Method::DELETE, "/jobs/job-1")))];
    assert_all_wait(&cancel).await;
    front.shelf.hangs.send_replace(false);
    assert_eq!(request.await.unwrap().0, StatusCode::ACCEPTED);
    let [cancel] = cancel;
    let (status, answer) = cancel.await.unwrap();
    assert_eq!((status, &answer["status"]), (StatusCode::ACCEPTED, &json!("cancelling")));
    assert!(!front.jobs.start(&job_of(&generate("job-1")), 1));
}

#[tokio::test]
async fn a_job_that_runs_for_a_caller_of_infer_is_in_no_queue() {
    let mut front = Front::open().await;
    let body = generate("job-1");
    let caller = ask(&front, "/infer", &body);
    let direct = tokio::time::timeout(DEADLINE, front.directs.recv()).await.unwrap().unwrap();
    for started in [false, true] {
        for path in ["/generate", "/infer"] {
            let response = front.request(Method::POST, path).json(&body).send().await.unwrap();
            assert_eq!((response.status(), &response.headers()["retry-after"]), (StatusCode::CONFLICT, &"5".parse().unwrap()));
            assert_problem(&super::json_of(response).await, "in_progress", None, "/infer");
        }
        if !started {
            assert!(front.jobs.start(&direct.job, 1));
        }
    }
    let other = json!({ "job_id": "job-1", "prompt": "another" });
    assert_problem(&front.post("/generate", &other).await.1, "conflict", Some("job_id"), "another request");
    assert!(front.shelf.taken().is_empty());
    // The caller goes away: the job ends as cancelled, and then a queue may have it.
    caller.abort();
    front.jobs.end("job-1", State::Cancelled, None);
    drop(direct);
    assert_eq!(front.post("/generate", &body).await.0, StatusCode::ACCEPTED);
    assert_eq!(front.shelf.taken().len(), 1);
    // And now that a queue has it, no one runs it beside the queue.
    let (status, answer) = front.post("/infer", &body).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_problem(&answer, "in_progress", None, "a queue has the job already");
}

#[tokio::test]
async fn a_cancelled_job_that_is_handed_in_again_is_run_or_not_promised() {
    let front = Front::open().await;
    let body = generate("job-1");
    let job = job_of(&generate("job-1"));
    let cancel = async || read(front.request(Method::DELETE, "/jobs/job-1")).await.0;
    assert_eq!(front.post("/generate", &body).await.0, StatusCode::ACCEPTED);
    assert_eq!(cancel().await, StatusCode::ACCEPTED);
    // No one was notified yet, and the queue has it still: the promise holds.
    assert_eq!(front.post("/generate", &body).await.0, StatusCode::ACCEPTED);
    assert!(front.jobs.start(&job, 1), "it runs");
    // It will stop at its next step: nothing is promised until it has.
    assert_eq!(cancel().await, StatusCode::ACCEPTED);
    assert_problem(&front.post("/generate", &body).await.1, "in_progress", None, "is being cancelled");
    front.jobs.end("job-1", State::Cancelled, None);
    assert_eq!(front.post("/generate", &body).await.0, StatusCode::ACCEPTED);
    assert_eq!(front.shelf.taken().len(), 2);
}

#[tokio::test]
async fn an_id_whose_failure_is_being_reported_is_not_promised() {
    let front = Front::open().await;
    let body = generate("job-1");
    front.post("/generate", &body).await;
    front.jobs.start(&job_of(&body), 3);
    front.jobs.ending("job-1");
    let (status, answer) = front.post("/generate", &body).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_problem(&answer, "in_progress", None, "being notified");
    front.jobs.end("job-1", State::Failed, None);
    let corrected = json!({ "job_id": "job-1", "prompt": "a lighthouse at dawn" });
    assert_eq!(front.post("/generate", &corrected).await.0, StatusCode::ACCEPTED, "a failed id takes a corrected body");
    assert_eq!(front.shelf.taken().len(), 2);
}
