//! What `atelier host` learns of every job, and that the notifications in it are as good as those the handler sends itself.

use atelier::protocol::reply::{JobOutcome, JobReport};
use atelier::workflow::control::{Cancels, Control, NotificationMode, Shutdown};
use atelier_engine::EngineError;
use serde_json::{Value, json};

use super::{body, http, one, response, sqs};
use crate::events::sample;
use crate::stage::{Stage, raw};

fn jobs(reply: &Value) -> Vec<JobReport> {
    serde_json::from_value(reply["jobs"].clone()).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

fn code(job: &JobReport) -> Option<&str> {
    job.error.as_ref().map(|error| error.code.as_str())
}

#[tokio::test]
async fn every_message_of_a_batch_is_reported_and_no_notification_is_waited_for() {
    let mut stage = Stage::set().await;
    // No one answers: a handler that waited for its notifications would not come back.
    stage.backend.answer.send_replace(None);
    let mut bad = body("bad");
    bad["steps"] = json!(0);
    stage.next_generation(|| Err(EngineError::Panicked("a bug in a kernel".into())));
    let batch = sqs(&[(body("again"), 1, None), (body("good"), 1, None), (bad, 1, None), (json!("no job"), 1, None)]);
    let reply = stage.handle_for_host(batch).await;
    assert_eq!(reply["batchItemFailures"], json!([{ "itemIdentifier": "m0" }]));
    let [again, good, bad, no_job] = &jobs(&reply)[..] else { panic!("not four: {reply}") };
    assert_eq!((again.outcome, code(again), again.notifications.len()), (JobOutcome::Retry, Some("inference_failed"), 0));
    assert_eq!((good.outcome, good.replayed, code(good), good.notifications.len()), (JobOutcome::Complete, false, None, 1));
    assert_eq!((bad.outcome, code(bad), bad.notifications.len()), (JobOutcome::Failed, Some("invalid_request"), 1));
    assert_eq!((no_job.outcome, no_job.job_id.as_deref(), no_job.notifications.len()), (JobOutcome::Failed, None, 1));
    let ids: Vec<_> = [again, good, bad, no_job].iter().map(|job| job.message_id.as_str()).collect();
    assert_eq!(ids, ["m0", "m1", "m2", "m3"]);
    assert!(
        stage.backend.arrived().iter().all(|notification| notification.path.ends_with("/progress")),
        "the handler sent none itself"
    );

    assert_eq!(reply["jobs"][2]["error"]["field"], "steps");
    assert_eq!(reply["jobs"][1]["notifications"][0]["to"], "backend");
    let replayed = &jobs(&stage.handle_for_host(one(body("good"), 1)).await)[0];
    assert!(replayed.replayed && replayed.notifications[0].id == good.notifications[0].id, "{replayed:?}");
}

#[tokio::test]
async fn a_notification_handed_over_arrives_as_if_sent_at_once() {
    let mut stage = Stage::set().await;
    let handed_over = jobs(&stage.handle_for_host(one(body("same"), 1)).await).remove(0);
    stage.notifier.send_all(&handed_over.notifications).await.unwrap();
    let later = stage.backend.terminal().await;
    stage.handle(one(body("same"), 1)).await.unwrap();
    let at_once = stage.backend.terminal().await;
    assert_eq!((&later.path, &later.webhook_id), (&at_once.path, &at_once.webhook_id));
    assert_eq!(later.body["images"][0]["key"], at_once.body["images"][0]["key"]);
}

#[tokio::test]
async fn a_last_attempt_is_dead_lettered_with_its_notification() {
    let mut stage = Stage::set().await;
    stage.next_generation(|| Err(EngineError::Panicked("a bug in a kernel".into())));
    let reply = stage.handle_for_host(one(body("last"), 3)).await;
    assert_eq!(reply["batchItemFailures"], json!([{ "itemIdentifier": "m0" }]));
    assert_eq!(reply["jobs"][0]["outcome"], "dead_letter");
    stage.notifier.send_all(&jobs(&reply)[0].notifications).await.unwrap();
    let notified = stage.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["attempts"]), ("/api/webhooks/inference/failed", &json!(3)));
}

/// Whether or not its body could be read: a conflict is kept, and the host moves it.
#[tokio::test]
async fn a_body_that_is_no_job_under_the_id_of_a_complete_one_is_a_conflict_that_is_kept() {
    let mut stage = Stage::set().await;
    stage.handle_for_host(one(body("taken"), 1)).await;
    for (field, value) in [("steps", json!(-3)), ("prompt", json!("another"))] {
        let mut other = body("taken");
        other[field] = value;
        let [refused] = &jobs(&stage.handle_for_host(one(other, 1)).await)[..] else { panic!("not one") };
        assert_eq!(
            (code(refused), refused.outcome, refused.notifications.len()),
            (Some("conflict"), JobOutcome::DeadLetter, 1)
        );
    }
}

#[tokio::test]
async fn a_rabbitmq_batch_has_partial_failure_and_the_hosts_own_names() {
    let mut stage = Stage::set().await;
    let mut event = sample("rabbitmq-lora.json");
    let message = event["rmqMessagesByQueue"]["image_generation::/"][0].clone();
    let messages = ["one", "two"].map(|id| {
        use base64::Engine as _;
        let mut message = message.clone();
        message["basicProperties"]["headers"]["x-atelier-message-id"] = json!(format!("host-{id}"));
        message["data"] = json!(base64::engine::general_purpose::STANDARD.encode(body(id).to_string()));
        message
    });
    event["rmqMessagesByQueue"]["image_generation::/"] = json!(messages);
    stage.next_generation(|| Err(EngineError::Panicked("once".into())));
    let reply = stage.handle_for_host(event).await;
    assert_eq!(reply["batchItemFailures"], json!([{ "itemIdentifier": "host-one" }]));
    let outcomes: Vec<_> = jobs(&reply).into_iter().map(|job| (job.message_id, job.outcome)).collect();
    assert_eq!(outcomes, [("host-one".to_owned(), JobOutcome::Retry), ("host-two".to_owned(), JobOutcome::Complete)]);
}

#[tokio::test]
async fn an_http_response_comes_before_its_notifications() {
    let mut stage = Stage::set().await;
    stage.backend.answer.send_replace(None);
    let reply = stage.handle_for_host(http(&body("web"))).await;
    assert_eq!(response(&reply).0, 200);
    let [done] = &jobs(&reply)[..] else { panic!("not one: {reply}") };
    assert_eq!((done.outcome, done.job_id.as_deref(), done.notifications.len()), (JobOutcome::Complete, Some("web"), 1));

    stage.next_generation(|| Err(EngineError::OutOfMemory { problem: "512x512 would fit".into() }));
    let reply = stage.handle_for_host(http(&body("large"))).await;
    let [failed] = &jobs(&reply)[..] else { panic!("not one: {reply}") };
    assert_eq!((response(&reply).0, failed.outcome, failed.notifications.len()), (422, JobOutcome::Failed, 1));
    let mut stranger = http(&body("web-2"));
    stranger["headers"]["x-internal-auth"] = json!("wrong");
    let reply = stage.handle_for_host(stranger).await;
    assert_eq!((response(&reply).0, jobs(&reply).len()), (401, 0));
}

#[tokio::test]
async fn a_cancelled_job_is_given_up_and_the_next_one_is_not_concerned() {
    let stage = Stage::set().await;
    let (cancels, cancelled) = Cancels::channel();
    let (_switch, shutdown) = Shutdown::channel();
    let control = Control::unlimited(shutdown).cancellable(cancelled).notification_mode_by(NotificationMode::Later);
    cancels.cancel("unwanted");
    let batch = sqs(&[(body("unwanted"), 1, None), (body("wanted"), 1, None)]);
    let reply = stage.handler.handle(&raw(&batch), &control).await.unwrap();
    let [unwanted, wanted] = &jobs(&reply)[..] else { panic!("not two: {reply}") };
    assert_eq!((unwanted.outcome, code(unwanted), unwanted.notifications.len()), (JobOutcome::Failed, Some("cancelled"), 1));
    assert_eq!(wanted.outcome, JobOutcome::Complete);
}

#[tokio::test]
async fn a_tryon_is_refused_once_by_a_function_that_generates_from_text() {
    let mut stage = Stage::set().await;
    let job = json!({ "job_id": "t", "task": "tryon", "person": "s3://b/p.png", "garments": ["s3://b/g.png"] });
    let reply = stage.handle_for_host(one(job.clone(), 1)).await;
    assert_eq!((&reply["jobs"][0]["outcome"], &reply["jobs"][0]["error"]["field"]), (&json!("failed"), &json!("task")));
    assert_eq!(stage.handle(one(job, 1)).await, Ok(super::brought_back(&[])));
    assert_eq!(stage.backend.terminal().await.body["error"]["field"], "task");
    assert!(stage.backend.arrived().is_empty(), "reported once");
}
