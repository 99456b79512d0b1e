//! One event in, one reply out: what is settled, what is redelivered, who is notified of what, and what is generated twice (nothing).

mod auto_mask;
mod batch;
mod conflicts;
mod controls;
mod dead;
mod edit;
mod ends;
mod host;
mod ip_adapters;
mod loras;
mod modes;
mod refused;
mod starts;
mod steps;
mod stopped;
mod traces;
mod tryon;
mod upscaling;

use atelier_engine::EngineError;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::bucket::is_image_key;
use crate::events::sample;
use crate::stage::Stage;

fn body(id: &str) -> Value {
    json!({ "job_id": id, "prompt": "a red mug", "width": 64, "height": 64, "steps": 8 })
}

/// An SQS batch of (body, attempt, group).
fn sqs(messages: &[(Value, u32, Option<&str>)]) -> Value {
    let mut event = sample("sqs-plain.json");
    let record = event["Records"][0].clone();
    let records = messages.iter().enumerate().map(|(number, (body, attempt, group))| {
        let mut record = record.clone();
        record["messageId"] = json!(format!("m{number}"));
        record["body"] = json!(body.to_string());
        record["attributes"]["ApproximateReceiveCount"] = json!(attempt.to_string());
        if let Some(group) = group {
            record["attributes"]["MessageGroupId"] = json!(group);
            record["eventSourceARN"] = json!("arn:aws:sqs:us-east-1:123456789012:image_generation.fifo");
        }
        record
    });
    event["Records"] = records.collect();
    event
}

fn one(body: Value, attempt: u32) -> Value {
    sqs(&[(body, attempt, None)])
}

fn brought_back(ids: &[&str]) -> Value {
    let failures: Vec<Value> = ids.iter().map(|id| json!({ "itemIdentifier": id })).collect();
    json!({ "batchItemFailures": failures })
}

fn http(body: &Value) -> Value {
    let mut event = sample("http-four.json");
    event["body"] = json!(body.to_string());
    event
}

fn response(reply: &Value) -> (u64, Value) {
    (reply["statusCode"].as_u64().unwrap(), serde_json::from_str(reply["body"].as_str().unwrap()).unwrap())
}

#[tokio::test]
async fn a_job_reports_its_way_from_zero_to_complete() {
    let mut stage = Stage::set().await;
    let mut job = body("way");
    job["num_images"] = json!(2);
    job["callback"] = json!({ "metadata": { "user_id": "u-17" } });
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    let notifications = stage.backend.arrived();
    let (complete, progress) = notifications.split_last().expect("notifications");
    let notified: Vec<u64> = progress.iter().filter_map(|notification| notification.body["progress"].as_u64()).collect();
    assert!(notified.is_sorted() && notified.iter().all(|percent| [0, 25, 50, 75, 90].contains(percent)), "{notified:?}");
    assert_eq!(complete.path, "/api/webhooks/inference/complete");
    assert_eq!(complete.body["images"].as_array().map(Vec::len), Some(2));
    assert_eq!(complete.body["metadata"]["user_id"], "u-17");
    assert!(is_image_key(complete.body["images"][1]["key"].as_str().unwrap(), "way", 1), "{}", complete.body);
    assert!(stage.bucket.path("generations/way/result.json").exists());
}

#[tokio::test]
async fn the_same_request_is_replayed_and_another_is_a_conflict() {
    let mut stage = Stage::set().await;
    let event = one(body("same"), 1);
    assert_eq!(stage.handle(event.clone()).await, Ok(brought_back(&[])));
    let first = stage.backend.terminal().await;
    assert_eq!(stage.handle(event).await, Ok(brought_back(&[])));
    let second = stage.backend.terminal().await;
    assert_eq!((first.webhook_id, first.path), (second.webhook_id, second.path));
    assert_eq!(stage.generated(), 1);

    let mut other = body("same");
    other["prompt"] = json!("a blue mug");
    assert_eq!(stage.handle(one(other, 1)).await, Ok(brought_back(&["m0"])), "the redrive policy keeps it");
    let notified = stage.backend.terminal().await;
    assert_eq!(
        (notified.path.as_str(), &notified.body["error"]["code"]),
        ("/api/webhooks/inference/failed", &json!("conflict"))
    );
    assert_eq!(stage.generated(), 1);
}

#[tokio::test]
async fn a_panic_is_brought_back_and_the_engine_lives_on() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::Panicked("a bug in a kernel".into())));
    assert_eq!(stage.handle(one(body("panic"), 1)).await, Ok(brought_back(&["m0"])));
    assert!(
        stage.backend.arrived().iter().all(|notification| notification.path.ends_with("/progress")),
        "nothing final was reported"
    );
    assert_eq!(stage.handle(one(body("panic"), 2)).await, Ok(brought_back(&[])));
    assert_eq!(stage.backend.terminal().await.path, "/api/webhooks/inference/complete");
}

#[tokio::test]
async fn the_last_attempt_is_reported_and_left_to_the_dead_letter_queue() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::Panicked("a bug in a kernel".into())));
    assert_eq!(stage.handle(one(body("last"), 3)).await, Ok(brought_back(&["m0"])));
    let notified = stage.backend.terminal().await;
    assert_eq!(notified.path, "/api/webhooks/inference/failed");
    assert_eq!((&notified.body["error"]["code"], &notified.body["attempts"]), (&json!("inference_failed"), &json!(3)));
    assert!(notified.body["error"]["message"].as_str().unwrap().contains("a bug in a kernel"));
}

#[tokio::test]
async fn out_of_memory_is_final_and_reported_once() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::OutOfMemory { problem: "512x512 would fit".into() }));
    assert_eq!(stage.handle(one(body("large"), 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert_eq!(notified.body["error"]["code"], "out_of_memory");
    assert!(stage.backend.arrived().is_empty(), "reported once");
}

#[tokio::test]
async fn what_is_not_finite_is_final_and_reported_once() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::NotFinite { problem: "the UNet of model sd15 gave NaN".into() }));
    assert_eq!(stage.handle(one(body("black"), 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert_eq!(notified.path, "/api/webhooks/inference/failed");
    assert_eq!(notified.body["error"]["code"], "not_finite");
    assert_eq!(notified.body["error"]["message"], "no finite image: the UNet of model sd15 gave NaN");
    assert!(stage.backend.arrived().is_empty(), "reported once");
}

#[tokio::test]
async fn an_undelivered_notification_brings_back_the_message_and_only_the_notification_is_repeated() {
    let mut stage = Stage::set().await;
    stage.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    assert_eq!(stage.handle(one(body("deaf"), 3)).await, Ok(brought_back(&["m0"])));
    let tried: Vec<_> =
        stage.backend.arrived().into_iter().filter(|notification| !notification.path.ends_with("/progress")).collect();
    assert!(
        tried.len() >= 2 && tried.iter().all(|notification| notification.path.ends_with("/complete")),
        "retried, never reported as failed"
    );
    stage.backend.answer.send_replace(Some(StatusCode::OK));
    assert_eq!(stage.handle(one(body("deaf"), 4)).await, Ok(brought_back(&[])));
    assert_eq!(stage.backend.terminal().await.webhook_id, tried[0].webhook_id);
    assert_eq!(stage.generated(), 1);
}

#[tokio::test]
async fn a_bucket_that_refuses_loses_no_image() {
    let mut stage = Stage::set().await;
    let event = one(body("full"), 1);
    stage.bucket.refuse(true);
    assert_eq!(stage.handle(event.clone()).await, Ok(brought_back(&["m0"])));
    assert!(
        stage.backend.arrived().iter().all(|notification| notification.path.ends_with("/progress")),
        "no one got a terminal notification"
    );
    stage.bucket.refuse(false);
    assert_eq!(stage.handle(event).await, Ok(brought_back(&[])));
    assert_eq!(stage.backend.terminal().await.path, "/api/webhooks/inference/complete");
}

#[tokio::test]
async fn a_fifo_group_stops_at_its_first_failure_and_other_groups_go_on() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::Panicked("once".into())));
    let batch =
        sqs(&[(body("g1-first"), 1, Some("g1")), (body("g1-second"), 1, Some("g1")), (body("g2-first"), 1, Some("g2"))]);
    assert_eq!(stage.handle(batch).await, Ok(brought_back(&["m0", "m1"])));
    assert_eq!(stage.generated(), 1);
}

#[tokio::test]
async fn a_rabbitmq_batch_fails_as_a_whole_and_replays_what_was_done() {
    let mut stage = Stage::set().await;
    let mut event = sample("rabbitmq-lora.json");
    let message = event["rmqMessagesByQueue"]["image_generation::/"][0].clone();
    let messages = ["r1", "r2"].map(|id| {
        let mut message = message.clone();
        message["data"] = json!(STANDARD.encode(body(id).to_string()));
        message
    });
    event["rmqMessagesByQueue"]["image_generation::/"] = json!(messages);
    stage.next_generation(|| Err(EngineError::Panicked("once".into())));
    let error = stage.handle(event.clone()).await.expect_err("one of two failed");
    assert!(error.contains("1 of 2 messages") && error.contains("once"), "{error}");
    assert_eq!(stage.handle(event).await, Ok(Value::Null));
    assert_eq!(stage.generated(), 2, "the one that was done was not generated again");
}

#[tokio::test]
async fn an_answer_has_the_callers_metadata_as_it_was_written() {
    let mut stage = Stage::set().await;
    let deep = format!(r#"{{"a": {}1{}}}"#, "[".repeat(200), "]".repeat(200));
    for (index, written) in [r#"{"id": 18446744073709551616, "price": 1.10}"#, r#"{"a": 1e999}"#, r#"{"a": "\ud800"}"#, &deep]
        .into_iter()
        .enumerate()
    {
        let mut event = http(&body(&format!("web-numbers-{index}")));
        let text = event["body"].as_str().unwrap().replacen('{', &format!(r#"{{"callback": {{"metadata": {written}}},"#), 1);
        event["body"] = text.into();
        // The second one is a replay.
        for _ in 0..2 {
            let reply = stage.handle(event.clone()).await.unwrap();
            assert!(reply["body"].as_str().unwrap().contains(&format!(r#""metadata":{written}"#)), "{reply}");
        }
    }
}

#[tokio::test]
async fn http_answers_with_the_result_or_with_what_is_wrong() {
    let mut stage = Stage::set().await;
    let reply = stage.handle(http(&body("web"))).await.unwrap();
    let (status, done) = response(&reply);
    assert_eq!((status, &done["status"], &done["replayed"]), (200, &json!("complete"), &json!(false)), "{done}");
    assert!(is_image_key(done["images"][0]["key"].as_str().unwrap(), "web", 0), "{done}");
    assert!(done["images"][0]["url"].as_str().unwrap().contains(done["images"][0]["key"].as_str().unwrap()), "{done}");
    let (status, done) = response(&stage.handle(http(&body("web"))).await.unwrap());
    assert_eq!((status, &done["replayed"]), (200, &json!(true)));

    let mut bad = body("web-bad");
    bad["steps"] = json!(0);
    let (status, failed) = response(&stage.handle(http(&bad)).await.unwrap());
    assert_eq!((status, &failed["error"]["field"]), (400, &json!("steps")), "{failed}");
    let mut other = body("web");
    other["seed"] = json!(5);
    assert_eq!(response(&stage.handle(http(&other)).await.unwrap()).0, 409);
    let mut stranger = http(&body("web-2"));
    stranger["headers"]["x-internal-auth"] = json!("wrong");
    assert_eq!(response(&stage.handle(stranger).await.unwrap()).0, 401);
    stage.next_generation(|| panic!("a bug"));
    let reply = stage.handle(http(&body("web-3"))).await.unwrap();
    assert_eq!((response(&reply).0, &reply["headers"]["retry-after"]), (503, &json!("5")), "{reply}");
    assert_eq!(stage.generated(), 1);
}
