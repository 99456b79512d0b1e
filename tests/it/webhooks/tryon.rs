//! The try-on service's callbacks on real HTTP: the images and who asked for them, or the error; and the load balancer.

use std::sync::Arc;

use atelier::job::Job;
use atelier::job::notification::{Notification, NotificationTarget};
use atelier::job::outcome::{JobError, RetryPolicy};
use atelier::notify::Notifier;
use atelier::notify::tryon::{AssetService, LoadBalancer, TryOnService};
use atelier::setting::Secret;
use axum::body::Body;
use axum::extract::{FromRequest as _, Multipart};
use serde_json::json;
use tempfile::TempDir;

use super::{TOKEN, settings, verify};
use crate::outbound::outbound;
use crate::requests::contract;
use crate::servers::http::{Answer, HttpServer, Request};
use crate::servers::s3::S3;
use crate::store::record_of;

const IMAGE: &[u8] = b"an image\r\n--not-a-boundary--\r\n\0\xff";

struct Bench {
    s3: S3,
    assets: HttpServer,
    load_balancer: HttpServer,
    notifier: Notifier,
    cache: TempDir,
}

/// `answers`: of the asset service.
async fn bench(answers: &[Answer]) -> Bench {
    let s3 = S3::start(&["images"]).await;
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = atelier::store::Store::connect(&s3.settings("images", cache.path()), outbound(&[])).await.expect("settings");
    let assets = HttpServer::start(answers).await;
    let load_balancer = HttpServer::start(&[Answer::status(200)]).await;
    let asset_service = AssetService {
        callback_url: Some(assets.url("/api/callback").to_string()),
        internal_auth_token: Some(Secret::new(TOKEN)),
    };
    let free = LoadBalancer { url: Some(load_balancer.url("/lb/").to_string()) };
    let service = TryOnService::new(&asset_service, &free, "gpu-1", &contract().model, Arc::new(store)).expect("settings");
    let silent = atelier::notify::Settings { backend_api_url: None, internal_api_token: None, ..settings(&assets) };
    let notifier = Notifier::new(&silent, outbound(&[])).expect("settings").with_tryon(service);
    Bench { s3, assets, load_balancer, notifier, cache }
}

fn tryon() -> Job {
    let body = json!({
        "job_id": "t-1", "task": "tryon", "person": "s3://b/p.png", "garments": ["s3://b/g.png"],
        "user_id": "u-7\r\n--", "session_id": "s-1", "callback": { "metadata": { "n": 1 } }
    });
    Job::from_json(body.to_string().as_bytes(), &contract()).expect("a try-on")
}

/// The notifications of a try-on whose image lies in the bucket, as they come out of another process.
fn complete(bench: &Bench) -> Vec<Notification> {
    bench.s3.put("images", "tryons/t-1/0.png", IMAGE);
    let job = tryon();
    let image = atelier::job::outcome::StoredImage {
        bucket: "images".into(),
        key: "tryons/t-1/0.png".into(),
        content_type: "image/png".into(),
        width_px: 720,
        height_px: 960,
        bytes: IMAGE.len() as u64,
        seed: 42,
        sha256: None,
        invisible_mark: None,
    };
    let notifications =
        bench.notifier.complete(&job, &record_of(&job, vec![image]), &["https://cdn/0.png".to_owned()]).expect("written");
    let handed_over = serde_json::to_string(&notifications).expect("JSON");
    assert!(!handed_over.contains(TOKEN), "the token left the process");
    serde_json::from_str(&handed_over).expect("the same notifications")
}

/// (name, file name, content) of each part, as another implementation reads them.
async fn parts(request: &Request) -> Vec<(String, Option<String>, Vec<u8>)> {
    let content_type = request.header("content-type").expect("a content type");
    let request = axum::http::Request::post("/").header("content-type", content_type).body(Body::from(request.body.clone()));
    let mut multipart = Multipart::from_request(request.expect("a request"), &()).await.expect("multipart");
    let mut parts = Vec::new();
    while let Some(field) = multipart.next_field().await.expect("a part") {
        let name = field.name().expect("a name").to_owned();
        let file = field.file_name().map(str::to_owned);
        parts.push((name, file, field.bytes().await.expect("its content").to_vec()));
    }
    parts
}

fn text(name: &str, content: &str) -> (String, Option<String>, Vec<u8>) {
    (name.to_owned(), None, content.as_bytes().to_vec())
}

#[tokio::test]
async fn the_asset_service_gets_the_image_and_the_load_balancer_hears_of_it() {
    let bench = bench(&[Answer::status(204)]).await;
    bench.notifier.send_all(&complete(&bench)).await.expect("delivered");
    let [request] = &bench.assets.requests()[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/api/callback"));
    assert_eq!((request.header("x-internal-auth"), request.header("authorization")), (Some(TOKEN), None));
    assert!(request.header("webhook-id").is_some() && request.header("webhook-timestamp").is_some());
    let expected = [
        text("job_id", "t-1"),
        text("user_id", "u-7\r\n--"),
        text("session_id", "s-1"),
        text("node_id", "gpu-1"),
        text("model_version", "sd15"),
        text("inference_time_ms", "1200"),
        ("output_image".to_owned(), Some("result.png".to_owned()), IMAGE.to_vec()),
    ];
    assert_eq!(parts(request).await, expected);
    let [free] = &bench.load_balancer.requests()[..] else { panic!("one request") };
    assert_eq!((free.method.as_str(), free.path.as_str()), ("POST", "/lb/job_complete"));
    verify(free);
    assert_eq!(free.json(), json!({ "node_id": "gpu-1", "job_id": "t-1", "metadata": { "n": 1 } }));
    assert!(free.at >= request.at && free.header("x-internal-auth").is_none());
}

#[tokio::test]
async fn a_callback_is_repeated_byte_by_byte_until_any_2xx() {
    let bench = bench(&[Answer::status(500), Answer::status(410), Answer::HangUp, Answer::status(201)]).await;
    bench.notifier.send_all(&complete(&bench)).await.expect("the fourth attempt");
    let requests = bench.assets.requests();
    assert_eq!(requests.len(), 4);
    for request in &requests {
        assert_eq!((request.header("webhook-id"), &request.body), (requests[0].header("webhook-id"), &requests[0].body));
    }
}

#[tokio::test]
async fn a_failure_is_reported_in_words() {
    let bench = bench(&[Answer::status(200)]).await;
    let job = tryon();
    let error = JobError::OutOfMemory { problem: "720p would fit".into() };
    let notifications = bench.notifier.failed(&NotificationTarget::from(&job), &error, 1).expect("written");
    bench.notifier.send_all(&notifications).await.expect("delivered");
    bench.notifier.send_all(&complete(&bench)).await.expect("delivered");
    let [failed, complete] = &bench.assets.requests()[..] else { panic!("two requests") };
    let parts = parts(failed).await;
    assert_eq!(parts.last(), Some(&text("error", "out of GPU memory: 720p would fit")));
    assert!(parts.contains(&text("inference_time_ms", "0")) && parts.iter().all(|(name, ..)| name != "output_image"));
    assert_ne!(failed.header("webhook-id"), complete.header("webhook-id"));
    assert_eq!(bench.load_balancer.requests().len(), 2, "the node is free after a failure, too");
}

#[tokio::test]
async fn a_deaf_load_balancer_harms_nobody_and_a_deaf_asset_service_brings_the_notification_back() {
    let bench = bench(&[Answer::status(200)]).await;
    bench.load_balancer.script(&[Answer::status(500)]);
    bench.notifier.send_all(&complete(&bench)).await.expect("delivered");
    assert_eq!(bench.load_balancer.requests().len(), 1, "notified once");

    bench.assets.script(&[Answer::status(503)]);
    let error = bench.notifier.send_all(&complete(&bench)).await.expect_err("never taken");
    assert_eq!(error.retry_policy(), RetryPolicy::Retry);
    assert!(error.to_string().contains("asset_result to http://127.0.0.1"), "{error}");
    assert_eq!(bench.load_balancer.requests().len(), 2, "the node is free all the same");
}

#[tokio::test]
async fn a_image_that_cannot_be_read_is_tried_again_later() {
    let bench = bench(&[Answer::status(200)]).await;
    let notifications = complete(&bench);
    bench.s3.fail_next(&[503; 8]);
    let error = bench.notifier.send(&notifications[0]).await.expect_err("no image");
    assert!(matches!(error, JobError::Storage { retry_policy: RetryPolicy::Wait, .. }), "{error}");
    assert!(bench.assets.requests().is_empty());
}

#[tokio::test]
async fn a_job_that_is_no_tryon_is_not_sent_there() {
    let bench = bench(&[]).await;
    let job = crate::store::job(&json!({}));
    assert_eq!(bench.notifier.complete(&job, &record_of(&job, Vec::new()), &[]).expect("written"), []);
    assert_eq!(bench.notifier.failed(&NotificationTarget::from(&job), &JobError::Cancelled, 1).expect("written"), []);
}

#[tokio::test]
async fn wrong_settings_are_named_at_start() {
    let bench = bench(&[]).await;
    let store = atelier::store::Store::connect(&bench.s3.settings("images", bench.cache.path()), outbound(&[])).await;
    let images: Arc<atelier::store::Store> = Arc::new(store.expect("settings"));
    let asset = |url: &str, token: Option<&str>| AssetService {
        callback_url: Some(url.to_owned()),
        internal_auth_token: token.map(Secret::new),
    };
    let wrong = [
        (asset("assets:8000", Some(TOKEN)), None, "asset_service.callback_url"),
        (asset("https://assets.example/", None), None, "asset_service.internal_auth_token"),
        (asset("https://assets.example/", Some("a\nb")), None, "asset_service.internal_auth_token"),
        (AssetService::default(), Some("lb"), "load_balancer.url"),
    ];
    for (asset_service, url, setting) in wrong {
        let load_balancer = LoadBalancer { url: url.map(str::to_owned) };
        let service = TryOnService::new(&asset_service, &load_balancer, "n", &contract().model, images.clone());
        assert_eq!(service.expect_err(setting).setting, setting);
    }
}

#[tokio::test]
async fn a_refused_callback_is_no_end_of_a_try_on_that_has_its_image() {
    for (answer, delivered) in [(200, true), (500, false)] {
        let bench = bench(&[Answer::status(answer)]).await;
        let mut notifications = complete(&bench);
        let refused = json!({ "id": "msg_1", "to": "callback", "url": "http://169.254.169.254/hook", "kind": "inference.complete", "body": "{}" });
        notifications.insert(0, serde_json::from_value(refused).expect("a notification"));
        let sent = bench.notifier.send_all_or_backend(&notifications).await;
        // What the asset service says decides, and it hears of no error.
        assert_eq!(sent.map_err(|error| error.retry_policy()), if delivered { Ok(()) } else { Err(RetryPolicy::Retry) });
        for request in bench.assets.requests() {
            let names: Vec<String> = parts(&request).await.into_iter().map(|(name, ..)| name).collect();
            assert!(names.iter().any(|name| name == "output_image") && names.iter().all(|name| name != "error"), "{names:?}");
        }
    }
}

#[tokio::test]
async fn neither_service_hears_anything_of_a_conflict() {
    let bench = bench(&[Answer::status(204)]).await;
    let job = tryon();
    let error = JobError::Conflict { job_id: job.id.clone() };
    let notifications = bench.notifier.failed(&NotificationTarget::from(&job), &error, 1).expect("written");
    bench.notifier.send_all(&notifications).await.expect("delivered");
    assert!(bench.assets.requests().is_empty());
    assert!(bench.load_balancer.requests().is_empty(), "the id is that of another job, which may still run");
}
