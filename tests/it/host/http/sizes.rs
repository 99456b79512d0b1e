//! Sizes that a caller chooses: refused early, and never repeated in the answer.

use std::pin::pin;
use std::time::{Duration, Instant};

use atelier::host::http::uploads::Uploads;
use futures::future::join;
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Front, assert_problem, generate, read};
use crate::host::{HostProcess, job};
use crate::servers::DEADLINE;
use crate::stage::TOKEN;

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

/// Bodies as large as they may be, and no room for more: who comes then is told to come back, and nothing else has to wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_large_bodies_are_in_memory() {
    let image = format!("data:image/png;base64,{}", "A".repeat(59 << 20));
    let body = json!({ "job_id": "large", "person": image, "garments": ["s3://b/g.png"] }).to_string();
    let front = Front::open_with(|http| {
        http.settings.max_uploads_bytes = 2 * body.len().next_multiple_of(1024);
        http.uploads = Uploads::new(&http.settings);
    })
    .await;
    let [first, second] = [expected(&front, &body).await, expected(&front, &body).await];

    let late = json!({ "job_id": "late", "person": "A".repeat(2 << 20), "garments": ["s3://b/g.png"] });
    let (status, answer) = front.post("/tryon", &late).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{answer}");
    assert_problem(&answer, "busy", None, "host.http.max_uploads_bytes");
    assert_eq!((&answer["status"], &answer["retry_after"]), (&json!("busy"), &json!(5)));
    assert_eq!(
        front.post("/generate", &generate("small")).await.0,
        StatusCode::ACCEPTED,
        "small ones never wait for large ones"
    );

    let answers = beside_probes(&front, join(sent(first, &body), sent(second, &body))).await;
    for answer in [answers.0, answers.1] {
        assert!(["HTTP/1.1 400 ", "HTTP/1.1 413 "].iter().any(|refused| answer.starts_with(refused)), "{answer}");
    }
    // The room is given back.
    expected(&front, &body).await;
}

/// The head of a request, and the host's word that it has room for the body.
async fn expected(front: &Front, body: &str) -> TcpStream {
    const WORD: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let head = format!(
        "POST /tryon HTTP/1.1\r\nhost: x\r\nx-internal-auth: {TOKEN}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; WORD.len()];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(answer, WORD, "{}", String::from_utf8_lossy(&answer));
    stream
}

/// The answer to a request whose body the host waits for.
async fn sent(mut stream: TcpStream, body: &str) -> String {
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What comes of `work`, next to which every probe is answered soon.
async fn beside_probes<T>(front: &Front, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let asked = Instant::now();
        tokio::select! {
            done = &mut work => return done,
            (status, _) = front.get("/health") => assert_eq!(status, StatusCode::OK),
        }
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(5), "/health took {took:?}");
    }
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
