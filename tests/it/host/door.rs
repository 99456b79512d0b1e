//! Jobs that a host's function can never do are refused by HTTP with 400, before anything is queued.

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
