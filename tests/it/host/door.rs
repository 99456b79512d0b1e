//! Jobs that a host's function can never do are refused by HTTP with 400, before anything is queued.

use atelier::demo::local::BUCKET;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::{HostProcess, job};
use crate::stage::TOKEN;

#[tokio::test]
async fn what_this_host_can_never_do_is_refused_at_the_door() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let with = |field: &str, value: Value| {
        let mut body = job("refused");
        body[field] = value;
        body
    };
    let tryon = json!({ "job_id": "refused", "person": "s3://b/p.png", "garments": ["s3://b/g.png"] });
    for (path, body, field) in [
        ("/tryon", tryon, "task"),
        ("/generate", with("model", json!("sdxl")), "model"),
        ("/generate", with("callback", json!({ "url": "https://10.0.0.1/hook" })), "callback.url"),
        ("/generate", with("callback", json!({ "url": "http://example.com/hook" })), "callback.url"),
        ("/generate", with("watermark", json!({ "text": "\u{1F600}" })), "watermark.text"),
        ("/generate", with("init_image", json!({ "url": "https://127.0.0.1/a.png" })), "init_image.url"),
        ("/generate", with("init_image", json!({ "url": "https://[::ffff:10.0.0.1]/a.png" })), "init_image.url"),
        ("/generate", with("init_image", json!({ "url": "http://example.com/a.png" })), "init_image.url"),
        ("/generate", with("lora", json!([{ "url": "https://files.localhost./a.safetensors" }])), "lora[0].url"),
        ("/generate", with("lora", json!([{ "url": format!("s3://{BUCKET}/idempotency/x") }])), "lora[0].url"),
    ] {
        let asked = client.post(format!("http://{}{path}", host.address())).header("x-internal-auth", TOKEN);
        let answer = asked.json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["error"]["field"], field, "{body}: {answer}");
    }
    assert!(host.spooled("waiting").is_empty() && host.spooled("running").is_empty());
    // The id is free: nothing of it was kept.
    host.post("/generate", &job("refused")).await;
    assert!(host.backend.terminal().await.path.ends_with("/complete"));
}

/// What the configuration says of the function holds from the start; nobody has to wait for a handler.
#[tokio::test]
async fn a_host_whose_handlers_are_not_ready_yet_knows_its_function() {
    // Its only handler cannot get ready: the bucket does not answer.
    let changes =
        [("ATELIER__STORE__UNLISTED_INPUT_BUCKETS", "refuse"), ("ATELIER__STORE__ENDPOINT_URL", "http://127.0.0.1:9")];
    let mut host = HostProcess::start(&changes, &[]).await;
    host.wait_for("listening for HTTP", 1).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let mut model = job("refused");
    model["model"] = json!("sdxl");
    let mut bucket = job("refused");
    bucket["init_image"] = json!({ "url": "s3://elsewhere/a.png" });
    for (body, field) in [(model, "model"), (bucket, "init_image.url")] {
        let asked = client.post(format!("http://{}/generate", host.address())).header("x-internal-auth", TOKEN);
        let answer = asked.json(&body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["field"], field);
    }
}

#[tokio::test]
async fn a_bucket_that_is_to_be_listed_is_named_before_it_is_refused() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    let mut body = job("unlisted");
    body["init_image"] = json!({ "url": "s3://elsewhere/a.png" });
    host.post("/generate", &body).await;
    assert!(host.backend.terminal().await.path.ends_with("/failed"), "there is no such bucket");
    let log = host.log();
    let warned = log.lines().find(|line| line.contains("store.unlisted_input_buckets: refuse")).unwrap_or_default();
    assert!(warned.contains("s3://elsewhere/a.png") && warned.contains("WARN"), "{log}");
}
