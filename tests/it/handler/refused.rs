//! Refused messages that no one can be notified of are kept where someone looks for them, and cost no work of the GPU.

use atelier::handler::KeepRefused;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{body, brought_back, one, sqs};
use crate::events::sample;
use crate::stage::Stage;

pub(super) fn rabbitmq(bodies: &[String]) -> Value {
    let mut event = sample("rabbitmq-nulls.json");
    let message = event["rmqMessagesByQueue"]["image_generation::/"][0].clone();
    let messages = bodies.iter().map(|body| {
        let mut message = message.clone();
        message["data"] = STANDARD.encode(body).into();
        message
    });
    event["rmqMessagesByQueue"]["image_generation::/"] = messages.collect();
    event
}

/// The objects under `dead/`.
pub(super) fn dead(stage: &Stage) -> Vec<Value> {
    let found = std::fs::read_dir(stage.bucket.path("dead")).into_iter().flatten();
    found.map(|entry| serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap()).collect()
}

pub(super) fn wrong(id: &str) -> Value {
    let mut job = body(id);
    job["steps"] = json!(0);
    job
}

#[tokio::test]
async fn sqs_gets_back_what_has_no_readable_job_id_and_nothing_else() {
    let mut stage = Stage::set().await;
    let envelope = json!({ "Type": "Notification", "TopicArn": "arn", "Message": "hello" });
    let batch = sqs(&[(json!("no job"), 1, None), (wrong("told"), 1, None), (body("good"), 1, None), (envelope, 2, None)]);
    assert_eq!(stage.handle(batch).await, Ok(brought_back(&["m0", "m3"])));
    assert_eq!(stage.generated(), 1, "the good one");
    assert!(dead(&stage).is_empty(), "the redrive policy keeps them");
}

#[tokio::test]
async fn keep_refused_keeps_those_that_were_reported_too() {
    let mut stage = Stage::set().await;
    stage.handler.keep_refused = KeepRefused { sqs: true, rabbitmq: true };
    assert_eq!(stage.handle(one(wrong("told"), 1)).await, Ok(brought_back(&["m0"])));
    assert_eq!(stage.backend.terminal().await.body["job_id"], "told");
    // A job that is refused once it is read, before the GPU has any work.
    let mut other = body("other-model");
    other["model"] = json!("sdxl");
    assert_eq!(stage.handle(one(other, 1)).await, Ok(brought_back(&["m0"])));
    assert_eq!(stage.handle(rabbitmq(&[wrong("rabbit").to_string()])).await, Ok(Value::Null));
    assert_eq!(dead(&stage).len(), 1);
    assert_eq!(stage.generated(), 0);
}

#[tokio::test]
async fn rabbitmq_on_lambda_leaves_them_in_the_bucket_with_the_reason() {
    let mut stage = Stage::set().await;
    let event = rabbitmq(&["no job".into(), wrong("told").to_string(), body("good").to_string()]);
    for _ in 0..2 {
        assert_eq!(stage.handle(event.clone()).await, Ok(Value::Null), "the batch is settled");
    }
    let [kept] = &dead(&stage)[..] else { panic!("not one: {:?}", dead(&stage)) };
    assert_eq!((&kept["body"], &kept["source"]), (&json!("no job"), &json!("rabbitmq")));
    assert_eq!((&kept["error"]["code"], &kept["message_id"]), (&json!("invalid_request"), &json!("image_generation::/#0")));
    assert!(kept["error"]["message"].as_str().unwrap().contains("must be a JSON object"), "{kept}");
    assert_eq!(stage.generated(), 1);
}

#[tokio::test]
async fn a_message_that_cannot_be_kept_is_brought_back() {
    let mut stage = Stage::set().await;
    std::fs::write(stage.bucket.path("dead"), "in the way").unwrap();
    let error = stage.handle(rabbitmq(&["no job".into()])).await.expect_err("kept nowhere");
    assert!(error.contains("1 of 1") && error.contains("s3:PutObject"), "{error}");
}

#[tokio::test]
async fn a_bare_job_is_answered_directly() {
    let mut stage = Stage::set().await;
    let answer = stage.handle(body("direct")).await.unwrap();
    assert_eq!((&answer["status"], &answer["job_id"]), (&json!("complete"), &json!("direct")));
    let refused = stage.handle(wrong("direct-wrong")).await.unwrap();
    assert_eq!((&refused["status"], &refused["error"]["field"]), (&json!("failed"), &json!("steps")));
    stage.next_generation(|| Err(atelier_engine::EngineError::Panicked("a bug in a kernel".into())));
    let error = stage.handle(body("direct-again")).await.expect_err("an asynchronous invocation is tried again");
    assert!(error.contains("a bug in a kernel"), "{error}");
}

#[tokio::test]
async fn a_job_in_an_envelope_is_run() {
    let mut stage = Stage::set().await;
    let envelope = json!({ "Type": "Notification", "TopicArn": "arn", "Message": body("enveloped").to_string() });
    assert_eq!(stage.handle(one(envelope, 1)).await, Ok(brought_back(&[])));
    assert_eq!(stage.backend.terminal().await.body["job_id"], "enveloped");
}
