//! Messages of one event that are generated as one batch, and those that are not.

use atelier_engine::EngineError;
use serde_json::{Value, json};

use super::{body, brought_back, sqs};
use crate::stage::Stage;

fn with(id: &str, field: &str, value: &Value) -> Value {
    let mut body = body(id);
    body[field] = value.clone();
    body
}

/// The ids of the jobs that were reported as complete, sorted.
async fn completed(stage: &mut Stage, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let notification = stage.backend.terminal().await;
        assert!(notification.path.ends_with("/complete"), "{notification:?}");
        ids.push(notification.body["job_id"].as_str().unwrap().to_owned());
    }
    ids.sort();
    ids
}

#[tokio::test]
async fn jobs_that_agree_are_generated_as_one() {
    let mut stage = Stage::set().await;
    let bodies = [with("a", "seed", &json!(1)), with("b", "prompt", &json!("a blue cat")), with("c", "num_images", &json!(2))];
    let event = sqs(&bodies.map(|body| (body, 1, None)));
    assert_eq!(stage.handle(event).await, Ok(brought_back(&[])));
    assert_eq!(stage.batches(), [3]);
    assert_eq!(completed(&mut stage, 3).await, ["a", "b", "c"]);
    for (id, n) in [("a", 0), ("b", 0), ("c", 0), ("c", 1)] {
        assert!(stage.bucket.image(id, n).exists(), "{id} {n}");
        assert!(stage.bucket.path(&format!("generations/{id}/result.json")).exists(), "{id}");
    }
}

#[tokio::test]
async fn jobs_that_do_not_agree_are_generated_one_after_the_other() {
    let mut stage = Stage::set().await;
    let others = [("steps", json!(9)), ("width", json!(72)), ("guidance_scale", json!(3)), ("scheduler", json!("ddim"))];
    let mut messages = vec![(body("first"), 1, None)];
    messages.extend(others.iter().map(|(field, value)| (with(field, field, value), 1, None)));
    messages.push((body("again"), 2, None));
    messages.push((body("first"), 1, None));
    messages.push((json!({ "job_id": "broken", "prompt": "a cat", "steps": 0 }), 1, None));
    messages.push((body("last"), 1, None));
    assert_eq!(stage.handle(sqs(&messages)).await, Ok(brought_back(&[])));
    // The first and the last; then each of the others, a second attempt among them. The second delivery of the first is a replay.
    assert_eq!(stage.batches(), [2, 1, 1, 1, 1, 1]);
}

#[tokio::test]
async fn a_batch_is_bounded_by_its_pixels() {
    let mut stage = Stage::set().await;
    let event = sqs(&["a", "b", "c", "d", "e"].map(|id| {
        let large = json!({ "job_id": id, "prompt": "a red mug", "width": 512, "height": 512, "steps": 8 });
        (large, 1, None)
    }));
    assert_eq!(stage.handle(event).await, Ok(brought_back(&[])));
    assert_eq!(stage.batches(), [4, 1]);
}

#[tokio::test]
async fn a_group_is_never_shared_and_stays_in_order() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::Panicked("once".into())));
    let messages = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")].map(|(id, group)| (body(id), 1, Some(group)));
    // The first of a batch fails: what follows in its group is redelivered, not generated; the other group goes on.
    assert_eq!(stage.handle(sqs(&messages)).await, Ok(brought_back(&["m0", "m1"])));
    assert_eq!(stage.batches(), [2, 1]);
    assert_eq!(completed(&mut stage, 2).await, ["b1", "b2"]);
}

#[tokio::test]
async fn one_jobs_failure_is_its_own() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::Request { field: "width", problem: "not this one".into() }));
    let event = sqs(&["a", "b"].map(|id| (body(id), 1, None)));
    assert_eq!(stage.handle(event).await, Ok(brought_back(&[])));
    let mut notified = [stage.backend.terminal().await, stage.backend.terminal().await];
    notified.sort_by_key(|notification| notification.path.clone());
    assert_eq!(notified.each_ref().map(|notification| notification.body["job_id"].clone()), ["b", "a"]);
    assert!(notified[1].path.ends_with("/failed") && notified[1].body["error"]["field"] == "width", "{:?}", notified[1]);
}

#[tokio::test]
async fn a_job_that_is_generated_already_keeps_nobody_waiting() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.handle(sqs(&[(body("done"), 1, None)])).await, Ok(brought_back(&[])));
    let event = sqs(&["done", "new"].map(|id| (body(id), 1, None)));
    assert_eq!(stage.handle(event).await, Ok(brought_back(&[])));
    assert_eq!(stage.batches(), [1, 1]);
    assert_eq!(stage.generated(), 2);
}
