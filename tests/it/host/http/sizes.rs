//! Sizes that a caller chooses: refused early, and never repeated in the answer.

use std::time::{Duration, Instant};

use atelier::host::http::uploads::Uploads;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{Front, assert_problem, generate, read};
use crate::host::{HostProcess, job};

#[tokio::test]
async fn a_body_that_is_too_much_to_parse_is_refused_before_it_is_parsed() {
    let front = Front::open().await;
    for path in ["/tryon", "/infer"] {
        for piece in ["[],", "{},", "\"\",", "1,"] {
            let body = format!("{{\"job_id\":\"a\",\"person\":[{}0]}}", piece.repeat((20 << 20) / piece.len()));
            let request = front.request(Method::POST, path).header("content-type", "application/json").body(body);
            let (status, body) = read(request).await;
            assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{path} {piece}: {body}");
            assert_problem(&body, "too_large", None, "at most 1000000 bytes outside of its texts");
        }
    }
}

#[tokio::test]
async fn an_error_is_no_echo() {
    let front = Front::open().await;
    let long = "n".repeat(900_000);
    let mut body = generate("job-1");
    body[&long] = json!(1);
    let (status, answer) = front.post("/generate", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.to_string().len() < 3_000, "{} bytes", answer.to_string().len());
    let form = format!("--b\r\ncontent-disposition: form-data; name=\"{long}\"\r\n\r\nx\r\n--b--\r\n");
    let request = front.request(Method::POST, "/tryon").header("content-type", "multipart/form-data; boundary=b");
    let (status, answer) = read(request.body(form)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.to_string().len() < 3_000, "{} bytes", answer.to_string().len());
    let mut body = generate("job-2");
    body["callback"] = json!({ "metadata": { "text": "x".repeat(70_000) } });
    let (status, answer) = front.post("/generate", &body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_problem(&answer, "invalid_request", Some("callback.metadata"), "at most 65536 bytes as JSON");
}

/// Bodies as large as they may be, more than there is room for: some are told to come back, and nothing else has to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_large_bodies_are_in_memory() {
    const BODY_BYTES: usize = 59 << 20;
    let front = Front::open_with(|http| {
        http.settings.max_uploads_bytes = 128 << 20;
        http.uploads = Uploads::new(&http.settings);
    })
    .await;
    let image = format!("data:image/png;base64,{}", "A".repeat(BODY_BYTES));
    let body = json!({ "job_id": "large", "person": image, "garments": ["s3://b/g.png"] }).to_string();
    let uploads = (0..6)
        .map(|_| read(front.request(Method::POST, "/tryon").header("content-type", "application/json").body(body.clone())));
    let probes = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let asked = Instant::now();
            assert_eq!(front.get("/health").await.0, StatusCode::OK);
            slowest = slowest.max(asked.elapsed());
            tokio::task::yield_now().await;
        }
        slowest
    };
    let (answers, slowest) = tokio::join!(futures::future::join_all(uploads), probes);
    let busy = answers.iter().filter(|(status, _)| *status == StatusCode::TOO_MANY_REQUESTS).count();
    let refused = answers.iter().filter(|(status, _)| [400, 413].contains(&status.as_u16())).count();
    assert!(busy > 0 && busy + refused == 6, "{:?}", answers.iter().map(|(status, _)| status).collect::<Vec<_>>());
    assert!(slowest < Duration::from_secs(5), "/health took {slowest:?}");
    for (_, answer) in answers.iter().filter(|(status, _)| *status == StatusCode::TOO_MANY_REQUESTS) {
        assert_problem(answer, "busy", None, "host.http.max_uploads_bytes");
        assert_eq!((&answer["status"], &answer["retry_after"]), (&json!("busy"), &json!(5)));
    }
    // The room is given back.
    let (status, _) = read(front.request(Method::POST, "/tryon").header("content-type", "application/json").body(body)).await;
    assert_ne!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        front.post("/generate", &generate("small")).await.0,
        StatusCode::ACCEPTED,
        "small ones never wait for large ones"
    );
}

/// As many jobs as may be in one event, each with all the metadata that it may have, in the form that takes most room in a reply.
#[tokio::test]
async fn the_largest_reply_there_can_be_is_taken() {
    const JOBS: usize = 16;
    let mut host = HostProcess::start(&[("ATELIER__HOST__BATCH", "16"), ("ATELIER__RUNTIME__MAX_ATTEMPTS", "1")], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    let metadata = json!({ "text": "\"".repeat(32_000) });
    for number in 0..JOBS {
        let mut body = job(&format!("job-{number}"));
        body["seed"] = json!(number);
        body["steps"] = json!(1);
        body["callback"] = json!({ "metadata": metadata });
        host.spool(&format!("job-{number}"), &body);
    }
    host.restart();
    for _ in 0..JOBS {
        let notified = host.backend.terminal().await;
        assert!(notified.path.ends_with("/complete"), "{}", notified.path);
        assert_eq!(notified.body["metadata"], metadata);
    }
    let died = host.logged("a handler ended; another is started after a pause").len();
    assert_eq!(died, 0, "{}", host.log());
}

#[tokio::test]
async fn more_jobs_in_an_event_than_a_reply_has_room_for_are_refused_at_start() {
    let environment = |batch: &str| std::collections::BTreeMap::from([("ATELIER__HOST__BATCH".to_owned(), batch.to_owned())]);
    for batch in ["0", "17", "4294967295"] {
        let error = atelier::config::Config::load(None, &environment(batch)).unwrap_err().to_string();
        assert!(error.contains("host.batch") && error.contains("1 to 16"), "{error}");
    }
    assert!(atelier::config::Config::load(None, &environment("16")).is_ok());
}
