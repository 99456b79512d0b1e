//! `Idempotency-Key`: one key, one request, one job, across processes.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use atelier::host::jobs::State;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::bucket::is_image_key;
use crate::host::HostProcess;

use super::{Front, assert_problem, generate, job_of, json_of};

async fn send(front: &Front, key: &str, body: &Value) -> Response {
    front.request(Method::POST, "/generate").header("idempotency-key", key).json(body).send().await.unwrap()
}

async fn answer(front: &Front, key: &str, body: &Value) -> (StatusCode, Value) {
    let response = send(front, key, body).await;
    (response.status(), json_of(response).await)
}

#[tokio::test]
async fn the_same_request_waits_and_then_has_the_same_result() {
    let front = Front::open().await;
    let body = generate("job-1");
    assert_eq!(answer(&front, "key-1", &body).await.0, StatusCode::ACCEPTED);
    for state in ["queued", "running"] {
        let again = send(&front, "key-1", &body).await;
        assert_eq!((again.status(), again.headers()["retry-after"].to_str().unwrap()), (StatusCode::CONFLICT, "5"), "{state}");
        assert_problem(&json_of(again).await, "in_progress", None, "under way");
        front.jobs.start(&job_of(&body), 1);
    }
    front.generate(&job_of(&body)).await;
    front.jobs.end("job-1", State::Complete, None);
    let done = send(&front, "key-1", &body).await;
    assert_eq!((done.status(), &done.headers()["idempotent-replayed"]), (StatusCode::OK, &"true".parse().unwrap()));
    let done = json_of(done).await;
    assert_eq!(done["status"], "complete");
    assert!(is_image_key(done["result"]["images"][0]["key"].as_str().unwrap(), "job-1", 0), "{done}");
    assert_eq!(front.shelf.taken().len(), 1);
}

#[tokio::test]
async fn another_request_under_the_same_key_is_a_conflict() {
    let front = Front::open().await;
    assert_eq!(answer(&front, "key-1", &generate("job-1")).await.0, StatusCode::ACCEPTED);
    let other_prompt = json!({ "job_id": "job-1", "prompt": "another" });
    for other in [generate("job-2"), other_prompt] {
        let (status, body) = answer(&front, "key-1", &other).await;
        assert_eq!(status, StatusCode::CONFLICT, "{other}");
        assert_problem(&body, "idempotency_key_reused", Some("Idempotency-Key"), "job_id job-1");
    }
    assert_eq!(answer(&front, "key-2", &generate("job-2")).await.0, StatusCode::ACCEPTED);
    assert_eq!(front.shelf.taken().len(), 2);
}

#[tokio::test]
async fn a_key_outlives_the_process_that_saw_it() {
    let first = Front::open().await;
    let body = generate("job-1");
    assert_eq!(answer(&first, "key-1", &body).await.0, StatusCode::ACCEPTED);
    // Another process over the same bucket, which knows nothing of the job.
    let store = first.store.clone();
    let second = Front::open_with(|http| http.store = store).await;
    let (status, other) = answer(&second, "key-1", &generate("job-2")).await;
    assert_eq!((status, &other["error"]["code"]), (StatusCode::CONFLICT, &json!("idempotency_key_reused")));
    // The claim says that the other's queue has the job: it is not sent again.
    let (status, again) = answer(&second, "key-1", &body).await;
    assert_eq!((status, &again["job_id"]), (StatusCode::ACCEPTED, &json!("job-1")), "{again}");
    assert!(second.shelf.taken().is_empty());
    first.generate(&job_of(&body)).await;
    let third = Front::open_with(|http| http.store = first.store.clone()).await;
    let done = send(&third, "key-1", &body).await;
    assert_eq!((done.status(), &done.headers()["idempotent-replayed"]), (StatusCode::OK, &"true".parse().unwrap()));
    assert_eq!(json_of(done).await["result"]["images"][0]["seed"], 42);
    assert!(third.shelf.taken().is_empty());
}

#[tokio::test]
async fn a_job_that_did_not_get_in_or_failed_is_taken_again() {
    let front = Front::open_with(|http| http.job_service.max_waiting = 0).await;
    let body = generate("job-1");
    front.snapshot.send_modify(|snapshot| snapshot.models[0].free = 0);
    assert_eq!(answer(&front, "key-1", &body).await.0, StatusCode::TOO_MANY_REQUESTS);
    front.snapshot.send_modify(|snapshot| snapshot.models[0].free = 2);
    assert_eq!(answer(&front, "key-1", &body).await.0, StatusCode::ACCEPTED, "the key alone must not block");
    for end in [State::Failed, State::Cancelled] {
        front.jobs.end("job-1", end, None);
        front.shelf.jobs.lock().unwrap().clear();
        assert_eq!(answer(&front, "key-1", &body).await.0, StatusCode::ACCEPTED, "{end:?}");
        assert_eq!(front.shelf.taken().len(), 1);
    }
}

#[tokio::test]
async fn without_the_store_nothing_is_promised() {
    let front = Front::open().await;
    front.bucket.refuse(true);
    let response = send(&front, "key-1", &generate("job-1")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "5");
    assert_problem(&json_of(response).await, "storage_failed", None, "s3:PutObject");
    assert!(front.shelf.taken().is_empty());
    assert_eq!(front.post("/generate", &generate("job-1")).await.0, StatusCode::ACCEPTED, "a job without a key needs no store");
    front.bucket.refuse(false);
    assert_eq!(answer(&front, "key-1", &generate("job-2")).await.0, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn of_many_at_once_one_gets_in() {
    let front = Front::open().await;
    let body = generate("job-1");
    let answers = futures::future::join_all((0..8).map(|_| answer(&front, "key-1", &body))).await;
    assert_eq!(front.shelf.taken().len(), 1);
    for (status, body) in &answers {
        let under_way = *status == StatusCode::CONFLICT && body["error"]["code"] == "in_progress";
        assert!(*status == StatusCode::ACCEPTED || under_way, "{status} {body}");
    }
    assert_eq!(answers.iter().filter(|(status, _)| *status == StatusCode::ACCEPTED).count(), 1);
}

#[tokio::test]
async fn a_key_is_1_to_255_visible_characters() {
    let front = Front::open().await;
    for key in ["", "two words", "é", &"x".repeat(256)] {
        let (status, body) = answer(&front, key, &generate("job-1")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{key:?}");
        assert_problem(&body, "invalid_request", Some("Idempotency-Key"), "1 to 255 visible ASCII");
    }
    assert_eq!(answer(&front, &"x".repeat(255), &generate("job-1")).await.0, StatusCode::ACCEPTED);
}

/// The object in which the bucket keeps a key, as if it had been written so long ago.
fn aged(front: &Front, key: &str, generation: &str, seconds: u64) {
    let name = base16ct::lower::encode_string(&Sha256::digest(key));
    let path = front.bucket.path(&format!("idempotency/{name}{generation}.json"));
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

/// What a host leaves that dies between its claim and the end of its send.
async fn died_with_a_claim(front: &Front, body: &Value) {
    let job = job_of(body);
    let claim = json!({ "fingerprint": job.fingerprint, "job_id": job.id, "nonce": "of-the-dead", "stage": "sending" });
    assert!(front.store.claim("key-1", 0, &claim).await.unwrap().is_none());
}

#[tokio::test]
async fn a_host_that_died_with_a_claim_blocks_the_key_for_a_minute() {
    let front = Front::open().await;
    let body = generate("job-1");
    died_with_a_claim(&front, &body).await;
    let (status, waiting) = answer(&front, "key-1", &body).await;
    assert_eq!((status, &waiting["error"]["code"]), (StatusCode::CONFLICT, &json!("in_progress")), "{waiting}");
    assert!(front.shelf.taken().is_empty());
    let (status, other) = answer(&front, "key-1", &generate("job-2")).await;
    assert_eq!((status, &other["error"]["code"]), (StatusCode::CONFLICT, &json!("idempotency_key_reused")));
    aged(&front, "key-1", "", 61);
    assert_eq!(answer(&front, "key-1", &body).await.0, StatusCode::ACCEPTED);
    assert_eq!(front.shelf.taken().len(), 1);
    // A third host follows the claim of the second.
    let third = Front::open_with(|http| http.store = front.store.clone()).await;
    assert_eq!(answer(&third, "key-1", &body).await.0, StatusCode::ACCEPTED);
    assert!(third.shelf.taken().is_empty());
}

#[tokio::test]
async fn a_claim_is_believed_for_a_time_and_then_the_bucket_decides() {
    let first = Front::open().await;
    let body = generate("job-1");
    assert_eq!(answer(&first, "key-1", &body).await.0, StatusCode::ACCEPTED);
    let second = Front::open_with(|http| http.store = first.store.clone()).await;
    aged(&first, "key-1", "", 120);
    let (status, waiting) = answer(&second, "key-1", &body).await;
    assert_eq!((status, &waiting["error"]["code"]), (StatusCode::CONFLICT, &json!("in_progress")), "{waiting}");
    // It may have failed there, and nobody here would know.
    aged(&first, "key-1", "", 16 * 60);
    assert_eq!(answer(&second, "key-1", &body).await.0, StatusCode::ACCEPTED);
    assert_eq!(second.shelf.taken().len(), 1);
    first.generate(&job_of(&body)).await;
    aged(&first, "key-1", ".1", 16 * 60);
    let third = Front::open_with(|http| http.store = first.store.clone()).await;
    let done = send(&third, "key-1", &body).await;
    assert_eq!((done.status(), &done.headers()["idempotent-replayed"]), (StatusCode::OK, &"true".parse().unwrap()));
    assert!(third.shelf.taken().is_empty());
}

#[tokio::test]
async fn what_a_queue_refused_frees_the_key_for_every_host() {
    let first = Front::open().await;
    let body = generate("job-1");
    first.shelf.away.store(true, Ordering::SeqCst);
    assert_eq!(answer(&first, "key-1", &body).await.0, StatusCode::SERVICE_UNAVAILABLE);
    let second = Front::open_with(|http| http.store = first.store.clone()).await;
    assert_eq!(answer(&second, "key-1", &body).await.0, StatusCode::ACCEPTED);
    assert_eq!((first.shelf.taken().len(), second.shelf.taken().len()), (0, 1));
}

/// Two hosts, each with its own spool, over one bucket.
#[tokio::test]
async fn one_key_at_two_hosts_generates_once() {
    const KEYS: usize = 6;
    let mut first = HostProcess::start(&[], &[]).await;
    first.wait_for("a handler is ready", 1).await;
    let bucket = format!("http://{}", first.bucket.address);
    let backend = format!("http://{}", first.backend.address);
    let same = [("ATELIER__STORE__ENDPOINT_URL", bucket.as_str()), ("BACKEND_API_URL", backend.as_str())];
    let mut second = HostProcess::start(&same, &[]).await;
    second.wait_for("a handler is ready", 1).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let addresses = [first.address(), second.address()];
    for number in 0..KEYS {
        let id = format!("job-{number}");
        let posts = addresses.iter().map(|address| {
            let request = client.post(format!("http://{address}/generate")).header("x-internal-auth", crate::stage::TOKEN);
            request.header("idempotency-key", format!("key-{number}")).json(&crate::host::job(&id)).send()
        });
        for answer in futures::future::join_all(posts).await {
            let answer = answer.unwrap();
            let status = answer.status();
            let body = json_of(answer).await;
            assert!([StatusCode::ACCEPTED, StatusCode::OK].contains(&status), "{status} {body}");
            assert_eq!(body["job_id"], id.as_str(), "{body}");
        }
    }
    for _ in 0..KEYS {
        assert!(first.backend.terminal().await.path.ends_with("/complete"));
    }
    for host in [&mut first, &mut second] {
        host.terminate();
        assert!(host.ended().await.success());
    }
    assert_eq!(first.bucket.puts("/0.png"), KEYS, "{:?}", first.bucket.keys_put());
    assert_eq!(first.backend.accepted().len(), KEYS, "and each was told once");
}

/// Another host that reads the same queue brought the job to its end, and this one never heard of it.
#[tokio::test]
async fn a_job_that_another_host_ended_does_not_hold_its_key_for_ever() {
    for is_complete in [false, true] {
        let front = Front::open().await;
        front.shelf.is_shared.store(true, Ordering::SeqCst);
        let body = generate("job-1");
        assert_eq!(answer(&front, "key-1", &body).await.0, StatusCode::ACCEPTED);
        assert_eq!(answer(&front, "key-1", &body).await.1["error"]["code"], "in_progress", "it waits, as far as is known");
        aged(&front, "key-1", "", 16 * 60);
        if is_complete {
            front.generate(&job_of(&body)).await;
        }
        let deadline = std::time::Instant::now() + crate::servers::DEADLINE;
        let last = loop {
            let (status, body) = answer(&front, "key-1", &body).await;
            if status != StatusCode::CONFLICT || std::time::Instant::now() > deadline {
                break (status, body["status"].clone());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        let expected =
            if is_complete { (StatusCode::OK, json!("complete")) } else { (StatusCode::ACCEPTED, json!("accepted")) };
        assert_eq!(last, expected);
        assert_eq!(front.shelf.taken().len(), if is_complete { 1 } else { 2 });
        // The key is claimed anew before the job is sent again: other hosts know of that, and send nothing.
        if !is_complete {
            aged(&front, "key-1", ".1", 0);
        }
    }
}
