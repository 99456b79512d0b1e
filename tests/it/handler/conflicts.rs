//! Two attempts at one id: the first record stands with its own files, and the loser says nothing that could be read as the winner's end.

use std::path::PathBuf;
use std::sync::Mutex;

use atelier::protocol::reply::{JobOutcome, JobReport};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{body, brought_back, http, one, response};
use crate::bucket::{Trouble, is_image_key};
use crate::stage::Stage;

/// A record that is written while the engine generates: by another host, as far as this one can see.
static RECORDS: Mutex<Vec<(&str, PathBuf, Vec<u8>)>> = Mutex::new(Vec::new());

fn turn_up(job_id: &str) {
    let mut records = RECORDS.lock().unwrap();
    let place = records.iter().position(|(id, ..)| *id == job_id).unwrap();
    let (_, path, record) = records.remove(place);
    std::fs::write(path, record).unwrap();
}

/// Generates the job, takes its record away, and returns it with its path.
async fn record_of(stage: &mut Stage, job: Value) -> (PathBuf, Vec<u8>) {
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
    stage.backend.terminal().await;
    let path = stage.bucket.path(&format!("generations/{id}/result.json"));
    let record = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    (path, record)
}

/// How many attempts have left images of the job.
fn attempts(stage: &Stage, job_id: &str) -> usize {
    let entries = std::fs::read_dir(stage.bucket.path(&format!("generations/{job_id}"))).unwrap();
    let directories = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    directories.filter(|path| std::fs::read_dir(path).unwrap().next().is_some()).count()
}

#[tokio::test]
async fn the_loser_of_an_id_leaves_the_winners_image_alone_and_is_kept_apart() {
    let mut stage = Stage::set().await;
    let (path, record) = record_of(&mut stage, body("two")).await;
    let winner = std::fs::read(stage.bucket.image("two", 0)).unwrap();
    RECORDS.lock().unwrap().push(("two", path.clone(), record.clone()));
    let mut other = body("two");
    other["seed"] = json!(7);
    stage.next_generation(|| {
        turn_up("two");
        Ok(())
    });
    let reply = stage.handle_for_host(one(other.clone(), 1)).await;
    let settled: JobReport = serde_json::from_value(reply["jobs"][0].clone()).unwrap();
    assert_eq!((settled.outcome, settled.notifications.len()), (JobOutcome::DeadLetter, 1), "{reply}");
    stage.notifier.send_all(&settled.notifications).await.unwrap();
    let notified = stage.backend.terminal().await;
    let shown = (&notified.body["job_id"], &notified.body["conflicting_job_id"], &notified.body["error"]["code"]);
    assert_eq!(shown, (&Value::Null, &json!("two"), &json!("conflict")), "{}", notified.body);
    assert_eq!(std::fs::read(stage.bucket.image("two", 0)).unwrap(), winner, "the image is that of its record");
    assert_eq!(attempts(&stage, "two"), 1, "the loser's file is gone");
    // Another loser is reported under another id, and none under that of the job's own failure.
    let mut third = body("two");
    third["seed"] = json!(8);
    let again: JobReport = serde_json::from_value(stage.handle_for_host(one(other, 1)).await["jobs"][0].clone()).unwrap();
    let another: JobReport = serde_json::from_value(stage.handle_for_host(one(third, 1)).await["jobs"][0].clone()).unwrap();
    assert_eq!(again.notifications[0].id, settled.notifications[0].id);
    assert_ne!(another.notifications[0].id, settled.notifications[0].id);
    // `msg_` and the first half of SHA-256("failed\ntwo").
    let failure = "msg_330087a7a278eb68c02a833bd7ab1486";
    assert!([&again, &another].iter().all(|settled| settled.notifications[0].id != failure));
}

#[tokio::test]
async fn a_slower_attempt_at_the_same_request_reports_the_first_ones_image() {
    let mut stage = Stage::set().await;
    let (path, record) = record_of(&mut stage, body("twice")).await;
    let first: Value = serde_json::from_slice(&record).unwrap();
    RECORDS.lock().unwrap().push(("twice", path, record));
    stage.next_generation(|| {
        turn_up("twice");
        Ok(())
    });
    assert_eq!(stage.handle(one(body("twice"), 1)).await, Ok(brought_back(&[])));
    let notified = stage.backend.terminal().await;
    let key = notified.body["images"][0]["key"].as_str().unwrap();
    assert!(is_image_key(key, "twice", 0) && key == first["images"][0]["key"], "{key}");
    assert!(stage.bucket.path(key).exists());
    assert_eq!((attempts(&stage, "twice"), stage.generated()), (1, 2));
    let sha256 = first["images"][0]["sha256"].as_str().unwrap();
    assert_eq!(
        (sha256.len(), &first["images"][0]["bytes"]),
        (64, &json!(std::fs::metadata(stage.bucket.path(key)).unwrap().len()))
    );
}

#[tokio::test]
async fn an_http_caller_hears_of_a_conflict_in_the_answer_alone() {
    let mut stage = Stage::set().await;
    stage.handle(one(body("mine"), 1)).await.unwrap();
    stage.backend.terminal().await;
    let mut other = body("mine");
    other["seed"] = json!(7);
    let (status, answer) = response(&stage.handle(http(&other)).await.unwrap());
    assert_eq!((status, &answer["error"]["code"]), (u64::from(StatusCode::CONFLICT.as_u16()), &json!("conflict")));
    assert!(stage.backend.arrived().is_empty());
}

#[tokio::test]
async fn one_id_under_two_prefixes_is_two_jobs() {
    let mut stage = Stage::set().await;
    let mut other = body("both");
    other["output"] = json!({ "prefix": "elsewhere/" });
    let mut named = body("both");
    named["output"] = json!({ "prefix": "generations/" });
    let mut ids = Vec::new();
    for job in [body("both"), other, named] {
        assert_eq!(stage.handle(one(job, 1)).await, Ok(brought_back(&[])));
        let notified = stage.backend.terminal().await;
        assert_eq!(notified.path, "/api/webhooks/inference/complete");
        ids.push(notified.webhook_id);
    }
    assert_eq!(ids[0], ids[2], "the default prefix, named or not");
    assert_ne!(ids[0], ids[1]);
    assert_eq!(stage.generated(), 2);
}

#[tokio::test]
async fn a_message_that_is_no_job_is_not_the_end_of_a_job_that_is_done() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.handle(one(body("done"), 1)).await, Ok(brought_back(&[])));
    stage.backend.terminal().await;
    let mut broken = body("done");
    broken["steps"] = json!(0);
    assert_eq!(stage.handle(one(broken.clone(), 1)).await, Ok(brought_back(&["m0"])), "the redrive policy keeps it");
    let notified = stage.backend.terminal().await;
    assert_eq!(
        (&notified.body["job_id"], &notified.body["error"]["code"]),
        (&Value::Null, &json!("conflict")),
        "{}",
        notified.body
    );
    // Whether there is such a job is not known: that is a reason to wait.
    stage.bucket.trouble(Trouble::Away);
    assert_eq!(stage.handle(one(broken, 1)).await, Ok(brought_back(&["m0"])));
    assert!(stage.backend.arrived().is_empty());
}

/// On Lambda a conflict is told and kept: by SQS's redrive policy, or in the bucket where the queue has nothing of the kind.
#[tokio::test]
async fn a_conflict_is_reported_and_kept_by_whatever_keeps_messages_there() {
    let mut stage = Stage::set().await;
    assert_eq!(stage.handle(one(body("mine"), 1)).await, Ok(brought_back(&[])));
    stage.backend.terminal().await;
    let mut other = body("mine");
    other["seed"] = json!(7);
    let mut ids = Vec::new();
    for attempt in 1..=2 {
        assert_eq!(stage.handle(one(other.clone(), attempt)).await, Ok(brought_back(&["m0"])));
        let notified = stage.backend.terminal().await;
        assert_eq!(notified.body["conflicting_job_id"], "mine", "{}", notified.body);
        ids.push(notified.webhook_id);
    }
    assert_eq!(ids[0], ids[1], "a receiver drops the repetition");
    let event = super::refused::rabbitmq(&[other.to_string()]);
    assert_eq!(stage.handle(event).await, Ok(Value::Null), "the batch is settled");
    let [kept] = &super::refused::dead(&stage)[..] else { panic!("not one") };
    assert_eq!((&kept["error"]["code"], &kept["source"]), (&json!("conflict"), &json!("rabbitmq")), "{kept}");
    assert_eq!(kept["body"].as_str().unwrap(), other.to_string());
    assert_eq!(stage.generated(), 1, "none of it used the GPU");
}
