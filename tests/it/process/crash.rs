//! kill -9 at the two moments that matter: before the record of a job, and before its notification.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::World;
use super::runtime_api::{Posted, RuntimeApi};
use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::events::sample;

const LIMIT: Duration = Duration::from_mins(10);

fn job(id: &str) -> Value {
    let mut event = sample("sqs-plain.json");
    event["Records"][0]["body"] = json!({ "job_id": id, "prompt": "a red mug on the beach", "steps": 4 }).to_string().into();
    event
}

fn all_settled() -> Posted {
    Posted::Response(json!({ "batchItemFailures": [] }))
}

#[tokio::test]
async fn killed_before_the_record_the_job_is_generated_once_more() {
    let mut api = RuntimeApi::start().await;
    let mut bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let world = World { runtime_api: api.address, s3: bucket.address, backend: backend.address };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");

    bucket.hold(Some("/result.json"));
    api.invoke(job("killed-early"), LIMIT);
    let mut handler = world.start(&[], &log);
    bucket.holding().await;
    handler.kill();
    bucket.hold(None);
    assert!(bucket.image("killed-early", 0).exists(), "the image was uploaded before the kill");
    assert!(!bucket.path("generations/killed-early/result.json").exists(), "and there is no record of it");
    assert!(
        backend.arrived().iter().all(|notification| notification.path.ends_with("/progress")),
        "no one was notified that it is done"
    );
    assert!(api.nothing_posted());

    api.invoke(job("killed-early"), LIMIT);
    let _second = world.start(&[], &log);
    assert_eq!(api.posted().await, all_settled());
    let notified = backend.terminal().await;
    assert_eq!(notified.path, "/api/webhooks/inference/complete");
    assert_eq!(bucket.puts("/0.png"), 2, "generated once more");
    assert_eq!(bucket.puts("/result.json"), 1);

    api.invoke(job("killed-early"), LIMIT);
    assert_eq!(api.posted().await, all_settled());
    assert_eq!(backend.terminal().await.webhook_id, notified.webhook_id);
    assert_eq!(bucket.puts("/0.png"), 2, "a job with a record is not generated again");
}

#[tokio::test]
async fn killed_before_the_notification_only_the_notification_is_sent() {
    let mut api = RuntimeApi::start().await;
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let world = World { runtime_api: api.address, s3: bucket.address, backend: backend.address };
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");

    backend.answer.send_replace(None);
    api.invoke(job("killed-late"), LIMIT);
    let mut handler = world.start(&[], &log);
    let unanswered = backend.terminal().await;
    handler.kill();
    backend.answer.send_replace(Some(StatusCode::OK));
    assert!(bucket.path("generations/killed-late/result.json").exists());
    backend.arrived();

    api.invoke(job("killed-late"), LIMIT);
    let _second = world.start(&[], &log);
    assert_eq!(api.posted().await, all_settled());
    let notified = backend.terminal().await;
    assert_eq!(notified.webhook_id, unanswered.webhook_id, "the caller can see that it is the same notification");
    assert_eq!(notified.body["images"][0]["key"], unanswered.body["images"][0]["key"], "with the same image");
    assert_eq!(bucket.puts("/0.png"), 1, "nothing was generated again");
    let lines = std::fs::read_to_string(&log).unwrap();
    let done: Vec<Value> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(
        done.iter().any(|line: &Value| line["message"] == "job done" && line["replayed"] == true),
        "the log says that it was a replay: {lines}"
    );
}
