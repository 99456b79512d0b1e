//! Every bad input of the contract, as an SQS message: the right error, reported once, never retried, and the next job is generated.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::routing::get;
use futures::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::World;
use super::runtime_api::{Posted, RuntimeApi};
use crate::backend::{Backend, Notification};
use crate::bucket::Bucket;
use crate::events::sample;

const LIMIT: Duration = Duration::from_mins(10);
static CHUNK: [u8; 65_536] = [0; 65_536];

/// A server of hostile files, on an address that the configuration allows.
async fn hostile() -> SocketAddr {
    let to = |address: &'static str| (StatusCode::FOUND, HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(address))]));
    let router = Router::new()
        .route("/endless", get(async || Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(CHUNK.as_slice())))))
        .route("/redirect", get(move || async move { to("http://169.254.169.254/latest/meta-data/") }))
        .route("/loop", get(move || async move { to("/loop") }));
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A LoRA file with one pair of matrices for `module`, filled with `value`.
fn lora(module: &str, width: usize, value: f32) -> Vec<u8> {
    let matrix = |rows: usize, columns: usize| {
        let bytes: Vec<u8> = std::iter::repeat_n(value.to_le_bytes(), rows * columns).flatten().collect();
        (vec![rows, columns], bytes)
    };
    let down = matrix(2, width);
    let up = matrix(width, 2);
    let view = |(shape, bytes): &(Vec<usize>, Vec<u8>)| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap().data().to_vec()
    };
    let down_bytes = view(&down);
    let up_bytes = view(&up);
    let tensors = [
        (
            format!("{module}.lora_A.weight"),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, down.0, &down_bytes).unwrap(),
        ),
        (
            format!("{module}.lora_B.weight"),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, up.0, &up_bytes).unwrap(),
        ),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

fn body(id: &str, field: &str, value: Value) -> String {
    let mut body = json!({ "job_id": id, "prompt": "a red mug", "steps": 1 });
    body[field] = value;
    body.to_string()
}

fn with_lora(id: &str, url: &str) -> String {
    body(id, "lora", json!([{ "url": url }]))
}

/// Runs the messages as one batch, whose reply must bring none of them back, and returns the notifications.
async fn notified(api: &mut RuntimeApi, backend: &mut Backend, bodies: &[String]) -> Vec<Notification> {
    let mut event = sample("sqs-plain.json");
    let record = event["Records"][0].clone();
    let records: Vec<Value> = bodies
        .iter()
        .enumerate()
        .map(|(number, body)| {
            let mut record = record.clone();
            record["messageId"] = json!(format!("message-{number}"));
            // A second delivery: those never share a batch, so the notifications come in the messages' order.
            record["attributes"]["ApproximateReceiveCount"] = json!("2");
            record["body"] = json!(body);
            record
        })
        .collect();
    event["Records"] = json!(records);
    api.invoke(event, LIMIT);
    // No one can be notified of a message without a readable id: the redrive policy is to keep it. Nothing else can succeed later.
    let back = bodies.iter().enumerate().filter(|(_, body)| {
        let job_id = serde_json::from_str::<Value>(body).ok().and_then(|body| body["job_id"].as_str().map(str::to_owned));
        job_id.is_none_or(|id| atelier::job::JobId::new(&id).is_err())
    });
    let back: Vec<Value> = back.map(|(number, _)| json!({ "itemIdentifier": format!("message-{number}") })).collect();
    assert_eq!(api.posted().await, Posted::Response(json!({ "batchItemFailures": back })), "the others are settled");
    backend.arrived().into_iter().filter(|notification| !notification.path.ends_with("/progress")).collect()
}

/// Each case: message, code, field, words that the message must hold.
type Case = (String, &'static str, &'static str, &'static str);

async fn check(cases: Vec<Case>, bucket: Bucket, changes: &[(&str, &str)]) {
    let mut api = RuntimeApi::start().await;
    let mut backend = Backend::start().await;
    let world = World { runtime_api: api.address, s3: bucket.address, backend: backend.address };
    let directory = tempfile::tempdir().unwrap();
    let _handler = world.start(changes, &directory.path().join("log"));

    let mut bodies: Vec<String> = cases.iter().map(|(body, ..)| body.clone()).collect();
    bodies.push(body("good-after-all", "seed", json!(1)));
    let notifications = notified(&mut api, &mut backend, &bodies).await;
    assert_eq!(notifications.len(), bodies.len(), "one terminal notification a message");
    for ((body, code, field, words), notification) in cases.iter().zip(&notifications) {
        assert_eq!(notification.path, "/api/webhooks/inference/failed", "{body}");
        let error = &notification.body["error"];
        assert_eq!(error["code"], *code, "{body}: {error}");
        assert_eq!(error["field"], *field, "{body}: {error}");
        assert!(error["message"].as_str().unwrap_or_default().contains(words), "{body}: {error} does not say {words:?}");
    }
    let last = notifications.last().unwrap();
    assert_eq!((last.path.as_str(), &last.body["job_id"]), ("/api/webhooks/inference/complete", &json!("good-after-all")));
    assert_eq!(bucket.puts("/result.json"), 1, "nothing but the good job was stored");
}

#[tokio::test]
async fn bad_bodies() {
    let long = "x".repeat(2_001);
    let cases: Vec<Case> = vec![
        ("this is not JSON".into(), "invalid_request", "body", "must be a JSON object"),
        (r#"{"job_id": "twice", "prompt": "x", "seed": 1, "seed": 2}"#.into(), "invalid_request", "seed", "comes twice"),
        (body("a", "widht", json!(64)), "invalid_request", "widht", "is not a field"),
        (body("b", "width", json!(100)), "invalid_request", "width", "a multiple of 8 from 64 to 2048"),
        (body("c", "height", json!(1_000_000)), "invalid_request", "height", "a multiple of 8 from 64 to 2048"),
        (body("d", "steps", json!(0)), "invalid_request", "steps", "from 1 to 200"),
        (body("e", "steps", json!(100_000)), "invalid_request", "steps", "from 1 to 200"),
        (body("f", "num_images", json!(0)), "invalid_request", "num_images", "from 1 to 4"),
        (body("g", "num_images", json!(9)), "invalid_request", "num_images", "from 1 to 4"),
        (body("h", "prompt", json!(long)), "invalid_request", "prompt", "at most 2000"),
        (body("a/b", "seed", json!(1)), "invalid_request", "job_id", "A-Z a-z 0-9"),
        (body("i", "model", json!("sdxl")), "invalid_request", "model", "tiny-sd"),
        (body("j", "callback", json!({ "url": "ftp://host/" })), "invalid_request", "callback.url", "https://"),
        (body("k", "callback", json!({ "url": "https://10.0.0.1/hook" })), "invalid_input", "callback.url", "public address"),
        (body("l", "callback", json!({ "url": "http://example.com/hook" })), "invalid_input", "callback.url", "https"),
        (
            json!({ "job_id": "t", "task": "tryon", "person": "s3://b/p.png", "garments": ["s3://b/g.png"] }).to_string(),
            "invalid_request",
            "task",
            "this function serves tiny-sd, which does generate and not tryon",
        ),
        (
            json!({ "job_id": "e", "task": "edit", "prompt": "x", "images": ["s3://b/p.png"] }).to_string(),
            "invalid_request",
            "task",
            "this function serves tiny-sd, which does generate and not edit",
        ),
        (body("m", "watermark", json!({ "text": "\u{1F600}" })), "invalid_request", "watermark.text", "U+1F600"),
    ];
    check(cases, Bucket::start().await, &[]).await;
}

#[tokio::test]
async fn bad_loras() {
    let bucket = Bucket::start().await;
    let target = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let mut truncated = lora(target, 8, 0.1);
    truncated.truncate(truncated.len() - 9);
    let files = [
        ("pickle.safetensors", b"PK\x03\x04 archive/data.pkl".to_vec()),
        ("truncated.safetensors", truncated),
        ("nan.safetensors", lora(target, 8, f32::NAN)),
        ("other-model.safetensors", lora(target, 7, 0.1)),
        ("no-match.safetensors", lora("unet.some_other_network.layer_9", 8, 0.1)),
        ("empty.safetensors", Vec::new()),
    ];
    std::fs::create_dir_all(bucket.path("loras")).unwrap();
    for (name, bytes) in files {
        std::fs::write(bucket.path("loras").join(name), bytes).unwrap();
    }
    let s3 = |id: &str, name: &str| with_lora(id, &format!("s3://{}/loras/{name}", atelier::demo::local::BUCKET));
    let cases: Vec<Case> = vec![
        (s3("a", "pickle.safetensors"), "invalid_input", "lora[0]", "pickle"),
        (s3("b", "truncated.safetensors"), "invalid_input", "lora[0]", ""),
        (s3("c", "nan.safetensors"), "invalid_input", "lora[0]", "NaN"),
        (s3("d", "other-model.safetensors"), "invalid_input", "lora[0]", "another model"),
        (s3("e", "no-match.safetensors"), "invalid_input", "lora[0]", "some_other_network"),
        (s3("f", "empty.safetensors"), "invalid_input", "lora[0]", ""),
        (s3("g", "missing.safetensors"), "invalid_input", "lora[0].url", "missing.safetensors"),
    ];
    check(cases, bucket, &[]).await;
}

#[tokio::test]
async fn bad_addresses() {
    let hostile = hostile().await;
    let at = |path: &str| format!("http://{hostile}{path}");
    let cases: Vec<Case> = vec![
        (with_lora("a", "https://10.1.2.3/lora"), "invalid_input", "lora[0].url", "public address"),
        (with_lora("b", "https://169.254.169.254/latest/meta-data"), "invalid_input", "lora[0].url", "public address"),
        (with_lora("c", "https://[::1]/lora"), "invalid_input", "lora[0].url", "public address"),
        (with_lora("d", "https://[::ffff:10.0.0.1]/lora"), "invalid_input", "lora[0].url", "public address"),
        (with_lora("e", "https://localhost/lora"), "invalid_input", "lora[0].url", "public address"),
        (with_lora("f", &at("/redirect")), "invalid_input", "lora[0].url", "public address"),
        (with_lora("g", &at("/loop")), "invalid_input", "lora[0].url", "redirects"),
        (with_lora("h", &at("/endless")), "invalid_input", "lora[0].url", "bytes"),
        (with_lora("i", &at("/not-there")), "invalid_input", "lora[0].url", "404"),
        (with_lora("j", "gopher://host/lora"), "invalid_request", "lora[0].url", "s3://BUCKET/KEY"),
    ];
    let changes = [
        ("ATELIER__OUTBOUND__ALLOW_HTTP", "true"),
        ("ATELIER__OUTBOUND__ALLOW", "[127.0.0.2/32]"),
        ("ATELIER__STORE__MAX_INPUT_BYTES", "1000000"),
    ];
    check(cases, Bucket::start().await, &changes).await;
}
