//! Jobs handed in, asked after and cancelled.

use std::sync::atomic::Ordering;

use atelier::host::job_service::{Model, StatusSnapshot};
use atelier::host::jobs::State;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Front, assert_problem, at, generate, idle, job_of, read};
use crate::bucket::is_image_key;
use crate::servers::DEADLINE;

#[tokio::test]
async fn a_job_is_accepted_when_the_queue_has_it() {
    let front = Front::open().await;
    let body = generate("job-1");
    let response = front.request(Method::POST, "/generate").json(&body).send().await.unwrap();
    assert_eq!((response.status(), &response.headers()["location"]), (StatusCode::ACCEPTED, &"/jobs/job-1".parse().unwrap()));
    let answer = super::json_of(response).await;
    assert_eq!(answer, json!({ "status": "accepted", "job_id": "job-1", "message": "the job is in the queue" }));
    assert_eq!(front.shelf.taken(), [("job-1".to_owned(), body.clone())]);
    // The same request again is not put into the queue again.
    let (status, again) = front.post("/generate", &body).await;
    assert_eq!((status, &again["message"]), (StatusCode::ACCEPTED, &json!("the job is in the queue already")));
    assert_eq!(front.shelf.taken().len(), 1);
    // Another request under its id is a conflict.
    let other = json!({ "job_id": "job-1", "prompt": "another" });
    let (status, body) = front.post("/generate", &other).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_problem(&body, "conflict", Some("job_id"), "choose another job_id");
}

#[tokio::test]
async fn what_is_wrong_is_named_and_nothing_is_queued() {
    let front = Front::open().await;
    for (field, value, says) in [
        ("job_id", json!("a/b"), "A-Z a-z 0-9"),
        ("steps", json!(0), "from 1 to 200"),
        ("task", json!("tryon"), "POST a try-on to /tryon"),
        ("promt", json!("typo"), "is not a field of this job"),
        ("callback", json!(7), ""),
    ] {
        let mut body = generate("job-1");
        body[field] = value;
        let (status, answer) = front.post("/generate", &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert_problem(&answer, "invalid_request", Some(field), says);
    }
    assert!(front.shelf.taken().is_empty());
    assert_eq!(front.get("/jobs/job-1").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn when_nothing_more_may_wait_callers_are_asked_to_come_back() {
    let front = Front::open().await;
    // Two may wait, and one is taken at once.
    for n in 0..3 {
        assert_eq!(front.post("/generate", &generate(&format!("job-{n}"))).await.0, StatusCode::ACCEPTED);
    }
    let response = front.request(Method::POST, "/generate").json(&generate("job-3")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "5");
    let body = super::json_of(response).await;
    assert_eq!((&body["status"], &body["retry_after"]), (&json!("busy"), &json!(5)));
    assert!(body["message"].as_str().is_some_and(|message| message.contains("busy")), "{body}");
    assert_problem(&body, "busy", None, "nothing more may wait");
    assert_eq!(front.get("/jobs/job-3").await.0, StatusCode::NOT_FOUND, "it is not known as accepted");
}

#[tokio::test]
async fn without_a_queue_or_a_model_nothing_is_promised() {
    let front = Front::open().await;
    let refused = async |code: &str, says: &str| {
        let response = front.request(Method::POST, "/generate").json(&generate("job-1")).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{code}");
        assert!(response.headers().contains_key("retry-after"), "{code}");
        assert_problem(&super::json_of(response).await, code, None, says);
    };
    front.shelf.away.store(true, Ordering::SeqCst);
    refused("queue_unavailable", "the broker is away").await;
    front.shelf.away.store(false, Ordering::SeqCst);
    front.snapshot.send_replace(StatusSnapshot { draining: true, ..idle() });
    refused("shutting_down", "shutting down").await;
    front.snapshot.send_replace(at(Model::Failed("no weights".into()), 0));
    refused("model_not_ready", "could not be made ready").await;
    assert_eq!(front.get("/jobs/job-1").await.0, StatusCode::NOT_FOUND);
    // While the model loads, a job waits in its queue.
    front.snapshot.send_replace(at(Model::Loading, 0));
    assert_eq!(front.post("/generate", &generate("job-1")).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_job_can_be_followed_to_its_end() {
    let front = Front::open().await;
    let body = generate("job-1");
    let id = "job-1";
    let job = job_of(&body);
    let look = async || {
        let (status, document) = front.get("/jobs/job-1").await;
        assert_eq!(status, StatusCode::OK, "{document}");
        document
    };
    front.post("/generate", &body).await;
    let queued = json!({
        "job_id": id, "state": "queued", "position": null, "progress": 0, "step": null, "steps": null, "attempt": 0, "error": null,
        "result": null,
    });
    assert_eq!(look().await, queued);
    front.jobs.start(&job, 1);
    front.jobs.progress(id, 5, 18);
    let state = json!("running");
    let progress = json!(25);
    let running = look().await;
    assert_eq!((&running["state"], &running["progress"], &running["attempt"]), (&state, &progress, &json!(1)));
    assert_eq!((&running["step"], &running["steps"]), (&json!(5), &json!(18)));
    front.jobs.requeue(id, Some(json!({ "code": "inference_failed", "message": "once" })));
    assert_eq!(look().await["error"]["code"], "inference_failed");
    front.jobs.start(&job, 2);
    front.generate(&job).await;
    front.jobs.end(id, State::Complete, None);
    let done = look().await;
    assert_eq!((&done["state"], &done["progress"], &done["error"]), (&json!("complete"), &json!(100), &Value::Null));
    let image = &done["result"]["images"][0];
    assert!(is_image_key(image["key"].as_str().unwrap(), "job-1", 0), "{image}");
    assert_eq!(image["seed"], 42);
    assert_eq!(done["result"]["timings_ms"]["infer"], 1_200);
    let response = front.client.get(image["url"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(response.bytes().await.unwrap(), super::png(), "the address works");
    // The same request again has the same result.
    let (status, again) = front.post("/generate", &body).await;
    assert_eq!((status, &again["status"]), (StatusCode::OK, &json!("complete")));
    assert_eq!(again["result"]["images"][0]["key"], image["key"]);
}

/// As a rule of the bucket deletes what is old, while the host remembers the job.
#[tokio::test]
async fn a_job_whose_record_was_deleted_is_one_like_any_other() {
    let front = Front::open().await;
    let body = generate("job-1");
    front.post("/generate", &body).await;
    front.generate(&job_of(&body)).await;
    front.jobs.end("job-1", State::Complete, None);
    assert_eq!(front.post("/generate", &body).await.0, StatusCode::OK);
    let record = format!("{}job-1/result.json", job_of(&body).output.prefix);
    std::fs::remove_file(front.bucket.path(&record)).unwrap();
    assert_eq!(front.get("/jobs/job-1").await.0, StatusCode::NOT_FOUND);
    let (status, answer) = front.post("/generate", &body).await;
    assert_eq!((status, &answer["message"]), (StatusCode::ACCEPTED, &json!("the job is in the queue")));
    assert_eq!(front.shelf.taken().len(), 2);
}

#[tokio::test]
async fn a_job_of_another_life_is_known_by_its_record() {
    let front = Front::open().await;
    front.generate(&job_of(&generate("job-1"))).await;
    let (status, document) = front.get("/jobs/job-1").await;
    assert_eq!((status, &document["state"], &document["attempt"]), (StatusCode::OK, &json!("complete"), &Value::Null));
    assert!(is_image_key(document["result"]["images"][0]["key"].as_str().unwrap(), "job-1", 0), "{document}");
    let (status, body) = read(front.request(Method::DELETE, "/jobs/job-1")).await;
    assert_eq!((status, &body["state"]), (StatusCode::CONFLICT, &json!("complete")));
    let (status, body) = front.get("/jobs/job-2").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_problem(&body, "unknown_job", None, "job-2");
}

/// So it was as well with one that was not allowed.
#[tokio::test]
async fn a_blocked_job_of_another_life_is_known_by_its_note() {
    let front = Front::open().await;
    let note = json!({ "job_id": "job-1", "fingerprint": "f", "category": "nude", "stage": "image", "policy": "0123456789ab",
        "checks": [], "blocked_at_s": 1_795_300_000 });
    let path = front.bucket.path(&format!("{}job-1/blocked.json", job_of(&generate("job-1")).output.prefix));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, note.to_string()).unwrap();
    let (status, document) = front.get("/jobs/job-1").await;
    assert_eq!((status, &document["state"], &document["result"]), (StatusCode::OK, &json!("failed"), &Value::Null));
    assert_eq!((&document["error"]["code"], &document["error"]["category"]), (&json!("content_blocked"), &json!("nude")));
}

#[tokio::test]
async fn a_job_that_another_host_has_generated_is_complete_here_too() {
    let front = Front::open().await;
    assert_eq!(front.post("/generate", &generate("job-1")).await.0, StatusCode::ACCEPTED);
    assert_eq!(front.get("/jobs/job-1").await.1["state"], "queued");
    front.generate(&job_of(&generate("job-1"))).await;
    let (_, document) = front.get("/jobs/job-1").await;
    assert_eq!((&document["state"], &document["progress"]), (&json!("complete"), &json!(100)));
    assert!(is_image_key(document["result"]["images"][0]["key"].as_str().unwrap(), "job-1", 0), "{document}");
}

#[tokio::test]
async fn a_job_is_cancelled_wherever_it_is() {
    let mut front = Front::open().await;
    let cancel = async |front: &Front| read(front.request(Method::DELETE, "/jobs/job-1")).await;
    assert_eq!(cancel(&front).await.0, StatusCode::NOT_FOUND);
    let body = generate("job-1");
    let job = job_of(&generate("job-1"));
    front.post("/generate", &body).await;
    let (status, waiting) = cancel(&front).await;
    let expected = json!({
        "status": "cancelling", "job_id": "job-1", "state": "queued", "message": "this host will not start the job",
    });
    assert_eq!((status, waiting), (StatusCode::ACCEPTED, expected));
    assert!(!front.jobs.start(&job, 1), "it must not be started");
    front.jobs.end("job-1", State::Cancelled, None);
    let (status, ended) = cancel(&front).await;
    assert_eq!((status, &ended["state"]), (StatusCode::CONFLICT, &json!("cancelled")));
    assert_problem(&ended, "already_ended", None, "cannot be cancelled");
    // A cancelled job may be handed in again.
    assert_eq!(front.post("/generate", &body).await.0, StatusCode::ACCEPTED);
    assert!(front.jobs.start(&job, 1));
    let (status, running) = cancel(&front).await;
    assert_eq!((status, &running["state"]), (StatusCode::ACCEPTED, &json!("running")));
    let notified = tokio::time::timeout(DEADLINE, front.cancels.recv()).await.unwrap();
    assert_eq!(notified.as_deref(), Some("job-1"), "its runner is notified");
}

#[tokio::test]
async fn no_more_come_in_at_once_than_may_wait() {
    let front = Front::open_with(|http| http.job_service.max_waiting = 5).await;
    let ids: Vec<String> = (0..60).map(|n| format!("job-{n}")).collect();
    let bodies: Vec<_> = ids.iter().map(|id| generate(id)).collect();
    let answers = futures::future::join_all(bodies.iter().map(|body| front.post("/generate", body))).await;
    let accepted = answers.iter().filter(|(status, _)| *status == StatusCode::ACCEPTED).count();
    assert!((1..=6).contains(&accepted), "{accepted} with one free handler");
    assert_eq!(front.shelf.taken().len(), accepted);
}

#[tokio::test]
async fn a_job_that_is_on_its_way_into_the_queue_is_said_to_be_so() {
    let front = Front::open().await;
    front.shelf.hangs.send_replace(true);
    let post = front.request(Method::POST, "/generate").json(&generate("job-1")).send();
    let look = async {
        let deadline = std::time::Instant::now() + DEADLINE;
        loop {
            let (status, body) = front.get("/jobs/job-1").await;
            if status == StatusCode::OK {
                front.shelf.hangs.send_replace(false);
                return body;
            }
            assert!(std::time::Instant::now() < deadline, "{status} {body}");
            tokio::task::yield_now().await;
        }
    };
    let (posted, seen) = tokio::join!(post, look);
    assert_eq!(seen["state"], "sending", "{seen}");
    assert_eq!(posted.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(front.get("/jobs/job-1").await.1["state"], "queued");
    // One that the queue does not take is not there.
    front.shelf.away.store(true, Ordering::SeqCst);
    assert_eq!(front.post("/generate", &generate("job-2")).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(front.get("/jobs/job-2").await.0, StatusCode::NOT_FOUND);
}
