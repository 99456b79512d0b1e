//! Webhooks against a real receiver: what arrives where, signed how, and what happens when it does not arrive.

mod deferred;
mod ends;
mod python;
mod snippets;
mod tryon;

use std::time::{Duration, Instant};

use atelier::job::notification::NotificationTarget;
use atelier::job::outcome::{JobError, RetryPolicy, StoredImage};
use atelier::job::{Callback, Job, JobId};
use atelier::notify::{Notifier, Settings};
use atelier::setting::Secret;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::outbound::outbound;
use crate::servers::DEADLINE;
use crate::servers::http::{Answer, HttpServer, Request};
use crate::store::{job, record_of};

const TOKEN: &str = "an internal token of 32 characters";
const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDZ0Nb2pCDUvM=";

fn settings(backend: &HttpServer) -> Settings {
    Settings {
        backend_api_url: Some(backend.url("/").to_string()),
        internal_api_token: Some(Secret::new(TOKEN)),
        signing_secret: Some(Secret::new(SECRET)),
        initial_backoff_ms: 20,
        max_backoff_ms: 50,
        attempt_timeout_ms: 500,
        progress_timeout_ms: 500,
        max_attempts: 4,
        ..Settings::default()
    }
}

fn notifier(settings: &Settings) -> Notifier {
    Notifier::new(settings, outbound(&["127.0.0.1"])).expect("settings")
}

async fn complete(notifier: &Notifier, job: &Job) -> Result<(), JobError> {
    let image = StoredImage {
        bucket: "images".into(),
        key: format!("generations/{}/0.png", job.id),
        content_type: "image/png".into(),
        width_px: 512,
        height_px: 768,
        bytes: 1_000,
        seed: 42,
        sha256: None,
        invisible_mark: None,
    };
    let urls = ["https://cdn.example.com/0.png".to_owned()];
    notifier.send_all(&notifier.complete(job, &record_of(job, vec![image]), &urls)?).await
}

async fn failed(
    notifier: &Notifier,
    job_id: Option<&JobId>,
    callback: Option<&Callback>,
    error: &JobError,
    attempt: u32,
) -> Result<(), JobError> {
    let of = NotificationTarget { job_id, callback, requester: None, trace: None, prefix: None, fingerprint: None };
    notifier.send_all(&notifier.failed(&of, error, attempt)?).await
}

fn problem(error: &JobError) -> &str {
    match error {
        JobError::Notification { problem, .. } => problem,
        other => panic!("not a notification error: {other:?}"),
    }
}

fn verify(request: &Request) {
    Webhook::new(SECRET).expect("a secret").verify(&request.body, &request.headers).expect("a valid signature");
}

#[tokio::test]
async fn complete_says_everything_to_the_backend() {
    let backend = HttpServer::start(&[Answer::status(204)]).await;
    let job = job(&json!({ "callback": { "metadata": { "user_id": "7" } } }));
    complete(&notifier(&settings(&backend)), &job).await.expect("delivered");
    let [request] = &backend.requests()[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/api/webhooks/inference/complete"));
    assert_eq!(request.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(request.header("content-type"), Some("application/json"));
    verify(request);
    let expected = json!({
        "type": "inference.complete", "job_id": "job-1", "image_urls": ["https://cdn.example.com/0.png"],
        "images": [{
            "url": "https://cdn.example.com/0.png", "bucket": "images", "key": "generations/job-1/0.png",
            "content_type": "image/png", "width": 512, "height": 768, "bytes": 1000, "seed": 42
        }],
        "model": "sd15", "timings_ms": { "infer": 1200 }, "metadata": { "user_id": "7" }
    });
    assert_eq!(request.json(), expected);
}

#[tokio::test]
async fn failed_says_why_and_whether_it_was_retried() {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let notifier = notifier(&settings(&backend));
    let id = JobId::new("job-1").expect("an id");
    let error = JobError::Input { field: "lora[0].url".into(), problem: "is a pickle".into(), cause: None };
    failed(&notifier, Some(&id), None, &error, 1).await.expect("delivered");
    failed(&notifier, None, None, &JobError::OutOfMemory { problem: "6 GB".into() }, 3).await.expect("delivered");
    let requests = backend.requests();
    assert_eq!((requests[0].method.as_str(), requests[0].path.as_str()), ("POST", "/api/webhooks/inference/failed"));
    requests.iter().for_each(verify);
    let expected = json!({
        "type": "inference.failed", "job_id": "job-1", "retried": false, "attempts": 1, "metadata": {},
        "error": { "code": "invalid_input", "message": "lora[0].url: is a pickle", "field": "lora[0].url" }
    });
    assert_eq!(requests[0].json(), expected);
    let second = requests[1].json();
    assert_eq!((&second["job_id"], &second["retried"], &second["attempts"]), (&Value::Null, &json!(true), &json!(3)));
    assert_eq!(second["error"], json!({ "code": "out_of_memory", "message": "out of GPU memory: 6 GB" }));
    assert_ne!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
}

#[tokio::test]
async fn a_notification_is_repeated_under_one_id_until_it_is_taken() {
    let answers = [Answer::status(500), Answer::HangUp, Answer::status(404), Answer::status(200)];
    let backend = HttpServer::start(&answers).await;
    let job = job(&json!({}));
    complete(&notifier(&settings(&backend)), &job).await.expect("the fourth attempt");
    complete(&notifier(&settings(&backend)), &job).await.expect("a redelivery, by another process");
    let requests = backend.requests();
    assert_eq!(requests.len(), 5);
    for request in &requests {
        verify(request);
        assert_eq!(request.header("webhook-id"), requests[0].header("webhook-id"));
        assert_eq!(request.body, requests[0].body);
    }
    complete(&notifier(&settings(&backend)), &crate::store::job(&json!({ "job_id": "job-2" }))).await.expect("delivered");
    assert_ne!(backend.requests()[5].header("webhook-id"), requests[0].header("webhook-id"));
}

#[tokio::test]
async fn a_notification_that_nobody_takes_brings_the_job_back() {
    let refusal = Answer::with(401, &[], "{\"detail\":\"who are you?\"}");
    let backend = HttpServer::start(&[refusal]).await;
    let error = complete(&notifier(&settings(&backend)), &job(&json!({}))).await.expect_err("never taken");
    assert_eq!(error.retry_policy(), RetryPolicy::Retry);
    let origin = backend.url("/").origin().ascii_serialization();
    let expected = format!(
        "complete to {origin}: the answer was 401 Unauthorized \"{{\\\"detail\\\":\\\"who are you?\\\"}}\" (4 attempts)"
    );
    assert_eq!(problem(&error), expected);
    assert_eq!(backend.requests().len(), 4);
    assert!(!format!("{error:?}").contains(TOKEN));
}

#[tokio::test]
async fn a_backend_that_is_down_brings_the_job_back() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let backend = HttpServer::start(&[]).await;
    let down = Settings { backend_api_url: Some(format!("http://{nobody}")), ..settings(&backend) };
    let error = complete(&notifier(&down), &job(&json!({}))).await.expect_err("no one there");
    let expected = format!(
        "complete to http://{nobody}: the server could not be reached (Connection refused (os error 111)) (4 attempts)"
    );
    assert_eq!(problem(&error), expected);
}

#[tokio::test]
async fn the_receiver_says_when_to_come_back() {
    let later = Answer::with(429, &[("retry-after", "1")], "");
    let backend = HttpServer::start(&[later, Answer::status(200)]).await;
    complete(&notifier(&settings(&backend)), &job(&json!({}))).await.expect("the second attempt");
    let requests = backend.requests();
    assert!(requests[1].at - requests[0].at >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_wait_beyond_the_bound_is_left_to_the_queue() {
    let later = Answer::with(503, &[("retry-after", "3600")], "");
    let backend = HttpServer::start(&[later, Answer::status(200)]).await;
    let started = Instant::now();
    let error = complete(&notifier(&settings(&backend)), &job(&json!({}))).await.expect_err("not now");
    assert!(problem(&error).contains("asks to wait 3600 s"), "{error}");
    assert!(started.elapsed() < DEADLINE);
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn a_wait_longer_than_any_clock_is_only_not_now() {
    for endless in ["18446744073709551615", "99999999999999999999999999"] {
        let later = Answer::with(503, &[("retry-after", endless)], "");
        let backend = HttpServer::start(&[later, Answer::status(200)]).await;
        let error = complete(&notifier(&settings(&backend)), &job(&json!({}))).await.expect_err("not now");
        assert_eq!(error.retry_policy(), RetryPolicy::Retry);
        assert!(problem(&error).contains("which asks to wait"), "{error}");
        assert_eq!(backend.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_redirect_is_a_failure_and_not_followed() {
    let elsewhere = HttpServer::start(&[Answer::status(200)]).await;
    let location = elsewhere.url("/").to_string();
    let backend = HttpServer::start(&[Answer::with(302, &[("location", &location)], "")]).await;
    let error = complete(&notifier(&settings(&backend)), &job(&json!({}))).await.expect_err("not followed");
    assert!(problem(&error).contains("302 Found (redirects are not followed"), "{error}");
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn gone_means_stop() {
    let backend = HttpServer::start(&[Answer::status(410)]).await;
    complete(&notifier(&settings(&backend)), &job(&json!({}))).await.expect("done, as no one wants to hear");
    assert_eq!(backend.requests().len(), 1);
}

#[tokio::test]
async fn silence_is_bounded_per_attempt_and_in_all() {
    let backend = HttpServer::start(&[Answer::Never]).await;
    let short = Settings { attempt_timeout_ms: 200, total_ms: 700, max_attempts: 100, ..settings(&backend) };
    let started = Instant::now();
    let error = complete(&notifier(&short), &job(&json!({}))).await.expect_err("no answer");
    assert!(problem(&error).contains("no answer within"), "{error}");
    assert!((2..=5).contains(&backend.requests().len()), "{}", backend.requests().len());
    assert!(started.elapsed() < Duration::from_millis(700) + DEADLINE);
}

#[tokio::test]
async fn a_callback_gets_everything_but_the_token() {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let receiver = HttpServer::start(&[Answer::status(200)]).await;
    let url = receiver.url("/hooks?user=7").to_string();
    let job = job(&json!({ "callback": { "url": url, "metadata": { "n": 1 } } }));
    let notifier = notifier(&settings(&backend));
    let progress = notifier.progress(&job);
    progress.reporter().report(25);
    progress.finish().await;
    complete(&notifier, &job).await.expect("delivered");
    failed(&notifier, Some(&job.id), job.callback.as_ref(), &JobError::Cancelled, 1).await.expect("delivered");
    assert!(backend.requests().is_empty());
    let requests = receiver.requests();
    let methods: Vec<_> = requests.iter().map(|request| (request.method.as_str(), request.path.as_str())).collect();
    assert_eq!(methods, [("PATCH", "/hooks?user=7"), ("POST", "/hooks?user=7"), ("POST", "/hooks?user=7")]);
    let types: Vec<_> = requests.iter().map(|request| request.json()["type"].clone()).collect();
    assert_eq!(types, ["inference.progress", "inference.complete", "inference.failed"]);
    for request in &requests {
        verify(request);
        assert_eq!(request.header("authorization"), None, "the internal token reached a stranger");
        assert_eq!(request.json()["metadata"], json!({ "n": 1 }));
    }
}

#[tokio::test]
async fn a_callback_inside_is_refused_and_the_backend_hears_of_it() {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let inner = HttpServer::start_at("127.0.0.2:0", &[Answer::status(200)]).await;
    let notifier = Notifier::new(&settings(&backend), outbound(&[])).expect("settings");
    let by_name = format!("http://localhost:{}/", inner.address.port());
    for url in [inner.url("/").as_str(), by_name.as_str(), "http://169.254.169.254/latest/meta-data"] {
        let job = job(&json!({ "callback": { "url": url } }));
        let error = complete(&notifier, &job).await.expect_err("must be refused");
        assert_eq!((error.retry_policy(), error.field()), (RetryPolicy::Terminal, Some("callback.url")), "{error}");
        failed(&notifier, Some(&job.id), job.callback.as_ref(), &error, 1).await.expect("the backend is notified");
    }
    assert!(inner.requests().is_empty());
    assert_eq!(backend.requests()[0].json()["error"]["field"], "callback.url");
}

#[tokio::test]
async fn nobody_to_notify_is_no_error() {
    let notifier = Notifier::new(&Settings::default(), outbound(&[])).expect("settings");
    let job = job(&json!({}));
    let progress = notifier.progress(&job);
    progress.reporter().report(0);
    progress.finish().await;
    complete(&notifier, &job).await.expect("nothing to do");
    failed(&notifier, None, None, &JobError::Cancelled, 1).await.expect("nothing to do");
}

#[tokio::test]
async fn progress_arrives_in_order_and_before_the_end() {
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let notifier = notifier(&settings(&backend));
    let job = job(&json!({ "callback": { "metadata": { "user_id": "7" } } }));
    let mut progress = notifier.progress(&job);
    let reporter = progress.reporter();
    for percent in [0, 25, 50, 75, 90] {
        reporter.report(percent);
    }
    progress.close().await;
    reporter.report(99);
    complete(&notifier, &job).await.expect("delivered");
    let requests = backend.requests();
    let (last, notified) = requests.split_last().expect("requests");
    assert_eq!(last.method, "POST");
    for (request, percent) in notified.iter().zip([0, 25, 50, 75, 90]) {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PATCH", "/api/webhooks/inference/progress"));
        verify(request);
        let expected =
            json!({ "type": "inference.progress", "job_id": "job-1", "progress": percent, "metadata": { "user_id": "7" } });
        assert_eq!(request.json(), expected);
    }
    assert_eq!(notified.len(), 5);
}

#[tokio::test]
async fn progress_never_waits_for_a_slow_backend() {
    let backend = HttpServer::start(&[Answer::Never]).await;
    let notifier = notifier(&settings(&backend));
    let mut progress = notifier.progress(&job(&json!({})));
    let reporter = progress.reporter();
    let started = Instant::now();
    for _ in 0..1_000 {
        reporter.report(50);
    }
    assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
    backend.wait_for(1).await;
    progress.close().await;
    let notified = backend.requests().len();
    backend.script(&[Answer::status(200)]);
    complete(&notifier, &job(&json!({}))).await.expect("delivered");
    let later: Vec<_> = backend.requests().split_off(notified).into_iter().map(|request| request.method).collect();
    assert_eq!(later, ["POST"], "progress after the end");
    assert!(started.elapsed() < DEADLINE);
}

#[tokio::test]
async fn progress_that_fails_is_no_error() {
    let backend = HttpServer::start(&[Answer::status(500), Answer::HangUp, Answer::status(200)]).await;
    let notifier = notifier(&settings(&backend));
    let progress = notifier.progress(&job(&json!({})));
    let reporter = progress.reporter();
    for percent in [0, 25, 50] {
        reporter.report(percent);
    }
    progress.finish().await;
    assert_eq!(backend.requests().len(), 3, "each is tried once");
}

#[tokio::test]
async fn wrong_settings_are_named_at_start() {
    let backend = HttpServer::start(&[]).await;
    let good = settings(&backend);
    let wrong = [
        (Settings { internal_api_token: Some(Secret::new(&"x".repeat(31))), ..good.clone() }, "notify.internal_api_token"),
        (Settings { internal_api_token: Some(Secret::new(&"x\n".repeat(20))), ..good.clone() }, "notify.internal_api_token"),
        (Settings { internal_api_token: None, ..good.clone() }, "notify.internal_api_token"),
        (Settings { backend_api_url: Some("backend:8000".into()), ..good.clone() }, "notify.backend_api_url"),
        (Settings { signing_secret: Some(Secret::new("whsec_c2hvcnQ=")), ..good.clone() }, "notify.signing_secret"),
        (Settings { signing_secret: Some(Secret::new(&SECRET[6..])), ..good.clone() }, "notify.signing_secret"),
    ];
    for (settings, setting) in wrong {
        let error = Notifier::new(&settings, outbound(&[])).expect_err(setting);
        assert_eq!(error.setting, setting, "{error}");
    }
    let short = Settings { internal_api_token: Some(Secret::new("too short")), ..good.clone() };
    let error = Notifier::new(&short, outbound(&[])).expect_err("too short");
    assert_eq!(error.problem, "must have at least 32 characters, has 9 (INTERNAL_API_TOKEN)");
    assert!(!format!("{good:?}").contains(TOKEN), "a secret in the log");
}

/// As a caller that counts in 64 bits without a sign, or in decimals, needs them.
const METADATA: &str =
    r#"{"id":18446744073709551616,"price":1.10,"third":0.33333333333333333333,"large":[123456789012345678901234567890]}"#;

#[tokio::test]
async fn numbers_in_metadata_come_back_as_they_were() {
    let body = format!(r#"{{"job_id": "job-1", "prompt": "p", "callback": {{"metadata": {METADATA}}}}}"#);
    let job = Job::from_json(body.as_bytes(), &crate::requests::contract()).expect("a job");
    let backend = HttpServer::start(&[Answer::status(200)]).await;
    let notifier = notifier(&settings(&backend));
    let progress = notifier.progress(&job);
    progress.reporter().report(25);
    progress.finish().await;
    complete(&notifier, &job).await.expect("delivered");
    failed(&notifier, Some(&job.id), job.callback.as_ref(), &JobError::Cancelled, 1).await.expect("delivered");
    let requests = backend.requests();
    assert_eq!(requests.len(), 3);
    for request in requests {
        let text = String::from_utf8(request.body).expect("a text");
        assert!(text.contains(&format!(r#""metadata":{METADATA}"#)), "{text}");
    }
}
