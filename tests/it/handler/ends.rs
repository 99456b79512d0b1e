//! One job, one end: where a record is, or may be, no one is notified that the job failed.

use atelier::protocol::reply::{JobOutcome, JobReport};
use atelier::workflow::control::{Cancels, Control, NotificationMode, Shutdown};
use atelier_engine::EngineError;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{body, brought_back, http, one, response};
use crate::bucket::Trouble;
use crate::stage::{Stage, raw};

/// The kinds of terminal notifications that came, in their order.
fn ends(stage: &mut Stage) -> Vec<String> {
    let terminal = stage.backend.arrived().into_iter().filter_map(|notification| {
        let (_, kind) = notification.path.rsplit_once('/')?;
        (kind != "progress").then(|| kind.to_owned())
    });
    terminal.collect()
}

fn job_of(reply: &Value) -> JobReport {
    serde_json::from_value(reply["jobs"][0].clone()).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

#[tokio::test]
async fn a_record_whose_answer_was_lost_in_the_last_attempt_is_no_failure() {
    for notification_mode in [NotificationMode::Now, NotificationMode::Later] {
        let mut stage = Stage::set().await;
        stage.bucket.trouble(Trouble::LostAnswers("/result.json"));
        let (_switch, shutdown) = Shutdown::channel();
        let control = Control::unlimited(shutdown).notification_mode_by(notification_mode);
        let reply = stage.handler.handle(&raw(&one(body("lost"), 3)), &control).await.unwrap();
        assert_eq!(reply["batchItemFailures"], brought_back(&["m0"])["batchItemFailures"], "{reply}");
        if notification_mode == NotificationMode::Later {
            assert_eq!(job_of(&reply).outcome, JobOutcome::StoreUnavailable, "{reply}");
        }
        assert_eq!(ends(&mut stage), [""; 0]);
        stage.bucket.trouble(Trouble::None);
        assert_eq!(stage.handle(one(body("lost"), 4)).await, Ok(brought_back(&[])));
        assert_eq!((ends(&mut stage), stage.generated()), (vec!["complete".to_owned()], 1));
    }
}

#[tokio::test]
async fn a_bucket_that_is_away_is_a_reason_to_wait() {
    let mut stage = Stage::set().await;
    stage.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    for attempt in 1..=3 {
        assert_eq!(stage.handle(one(body("away"), attempt)).await, Ok(brought_back(&["m0"])));
    }
    let notified = ends(&mut stage);
    assert!(notified.len() >= 3 && notified.iter().all(|kind| kind == "complete"), "{notified:?}");
    stage.backend.answer.send_replace(Some(StatusCode::OK));
    stage.bucket.trouble(Trouble::Away);
    // Whatever else is wrong with the job: its record is not known to be missing.
    let mut impossible = body("away");
    impossible["callback"] = json!({ "url": "https://10.0.0.1/hook" });
    for job in [body("away"), impossible] {
        assert_eq!(stage.handle(one(job.clone(), 4)).await, Ok(brought_back(&["m0"])));
        let reply = stage.handle_for_host(one(job.clone(), 4)).await;
        assert_eq!((job_of(&reply).outcome, job_of(&reply).notifications.len()), (JobOutcome::StoreUnavailable, 0), "{reply}");
        let answer = response(&stage.handle(http(&job)).await.unwrap());
        assert_eq!((answer.0, &answer.1["error"]["code"]), (503, &json!("storage_failed")), "{answer:?}");
    }
    assert_eq!(ends(&mut stage), [""; 0]);
    stage.bucket.trouble(Trouble::None);
    assert_eq!(stage.handle(one(body("away"), 5)).await, Ok(brought_back(&[])));
    assert_eq!((ends(&mut stage), stage.generated()), (vec!["complete".to_owned()], 1));
}

#[tokio::test]
async fn a_failure_beside_a_record_is_reported_as_complete() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.handle(one(body("done"), 1)).await, Ok(brought_back(&[])));
    let first = stage.backend.terminal().await;
    // A cancel that comes before the record was looked for.
    let (cancels, cancelled) = Cancels::channel();
    let (_switch, shutdown) = Shutdown::channel();
    cancels.cancel("done");
    for notification_mode in [NotificationMode::Now, NotificationMode::Later] {
        let control = Control::unlimited(shutdown.clone()).cancellable(cancelled.clone());
        let reply =
            stage.handler.handle(&raw(&one(body("done"), 1)), &control.notification_mode_by(notification_mode)).await.unwrap();
        if notification_mode == NotificationMode::Later {
            assert_eq!((job_of(&reply).outcome, job_of(&reply).replayed), (JobOutcome::Complete, true), "{reply}");
            stage.notifier.send_all(&job_of(&reply).notifications).await.unwrap();
        }
        let notified = stage.backend.terminal().await;
        assert_eq!((notified.path, notified.webhook_id), (first.path.clone(), first.webhook_id.clone()));
    }
    // Over HTTP the same, in the answer itself.
    let reply =
        stage.handler.handle(&raw(&http(&body("done"))), &Control::unlimited(shutdown).cancellable(cancelled)).await.unwrap();
    let (status, answer) = response(&reply);
    assert_eq!((status, &answer["status"], &answer["images"][0]["seed"]), (200, &json!("complete"), &json!(42)), "{answer}");
    assert_eq!((ends(&mut stage), stage.generated()), (vec!["complete".to_owned()], 1));
}

#[tokio::test]
async fn a_failed_attempt_beside_one_that_stored_the_record_is_reported_as_complete() {
    static RECORD: std::sync::Mutex<Option<(std::path::PathBuf, Vec<u8>)>> = std::sync::Mutex::new(None);
    let mut stage = Stage::set().await;
    assert_eq!(stage.handle(one(body("twin"), 1)).await, Ok(brought_back(&[])));
    let path = stage.bucket.path("generations/twin/result.json");
    let record = std::fs::read(&path).unwrap();
    ends(&mut stage);
    // The record comes while the second delivery generates, which then fails for good.
    std::fs::remove_file(&path).unwrap();
    *RECORD.lock().unwrap() = Some((path, record));
    stage.next_generation(|| {
        let (path, record) = RECORD.lock().unwrap().take().unwrap();
        std::fs::write(path, record).unwrap();
        Err(EngineError::OutOfMemory { problem: "64x64 would fit".into() })
    });
    let reply = stage.handle_for_host(one(body("twin"), 3)).await;
    assert_eq!(job_of(&reply).outcome, JobOutcome::Complete, "{reply}");
    assert_eq!(reply["batchItemFailures"], json!([]));
}

#[tokio::test]
async fn a_callback_that_is_refused_after_the_record_is_reported_to_the_backend_as_complete() {
    let mut stage = Stage::set().await;
    let mut job = body("refused");
    // A name that resolves to this machine: that is known only when it is called.
    job["callback"] = json!({ "url": "https://localhost:9/hook", "metadata": { "n": 1 } });
    assert_eq!(stage.handle(one(job.clone(), 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["metadata"]["n"]), ("/api/webhooks/inference/complete", &json!(1)));
    assert_eq!((ends(&mut stage), stage.generated()), (vec![], 1));
    // A failure goes the same way, with its own reason.
    let mut other = job.clone();
    other["job_id"] = json!("refused-too");
    stage.next_generation(|| Err(EngineError::OutOfMemory { problem: "64x64 would fit".into() }));
    assert_eq!(stage.handle(one(other, 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    assert_eq!(
        (notified.path.as_str(), &notified.body["error"]["code"]),
        ("/api/webhooks/inference/failed", &json!("out_of_memory"))
    );
}
