//! Whole hosts: a job that has its images ends once, as complete, whenever a caller asks to cancel it.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{HostProcess, eventually, job};

/// A host with a job whose images are stored and whose `complete` is not taken; it is tried again after some seconds.
async fn untaken(id: &str) -> HostProcess {
    let pause = [("ATELIER__HOST__INITIAL_BACKOFF_MS", "6000"), ("ATELIER__HOST__MAX_BACKOFF_MS", "6000")];
    let mut host = HostProcess::start(&[pause[0], pause[1], ("ATELIER__NOTIFY__MAX_ATTEMPTS", "1")], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    host.post("/generate", &job(id)).await;
    host.wait_for("a notification waits to be sent again", 1).await;
    host
}

/// Waits until the job's `complete` is taken and the spool empty; nothing else may have been taken.
async fn ends_as_complete(mut host: HostProcess, id: &str) {
    host.backend.answer.send_replace(Some(StatusCode::OK));
    eventually("the job is settled", || host.spooled("waiting").is_empty() && host.spooled("running").is_empty())
        .await
        .unwrap();
    let accepted = host.backend.accepted().into_iter().filter(|notified| notified.body["job_id"] == id);
    let taken: Vec<(String, Value)> = accepted.map(|notified| (notified.path, notified.body["job_id"].clone())).collect();
    assert_eq!(taken, [("/api/webhooks/inference/complete".to_owned(), json!(id))]);
    let notified = host.backend.arrived();
    assert!(notified.iter().all(|notification| !notification.path.ends_with("/failed")), "{notified:?}");
    let document: Value = serde_json::from_str(&host.get(&format!("/jobs/{id}")).await).unwrap();
    assert_eq!((&document["state"], &document["error"]), (&json!("complete"), &Value::Null));
    assert!(host.spooled("dead").is_empty());
    assert_eq!(host.bucket.puts(&format!("/{id}/result.json")), 1);
}

#[tokio::test]
async fn a_job_whose_complete_is_not_taken_cannot_be_cancelled() {
    let host = untaken("told").await;
    let (status, answer) = host.try_cancel("told").await;
    assert_eq!((status, &answer["error"]["code"], &answer["state"]), (409, &json!("already_ended"), &json!("complete")));
    assert_eq!(answer["result"]["images"][0]["seed"], 42, "the caller has its result: {answer}");
    ends_as_complete(host, "told").await;
}

#[tokio::test]
async fn a_cancelled_job_whose_record_turns_up_is_reported_as_complete() {
    let mut host = untaken("late").await;
    host.kill();
    let record = host.bucket.path("generations/late/result.json");
    let aside = record.with_extension("aside");
    std::fs::rename(&record, &aside).unwrap();
    // The job is another host's as far as this one knows, and waits here behind one that runs.
    for left in host.spooled("waiting").into_iter().chain(host.spooled("running")) {
        std::fs::remove_file(left).unwrap();
    }
    host.backend.answer.send_replace(Some(StatusCode::OK));
    host.bucket.hold(Some("/0.png"));
    host.restart();
    host.ready().await;
    host.post("/generate", &job("before")).await;
    host.bucket.holding().await;
    host.post("/generate", &job("late")).await;
    assert_eq!(host.try_cancel("late").await.0, 202, "there is no record as far as is known");
    std::fs::rename(&aside, &record).unwrap();
    host.bucket.hold(None);
    ends_as_complete(host, "late").await;
}

/// The terminal notifications that a host's backend has taken: by job id, or by the id that is another job's.
fn taken(host: &HostProcess) -> Vec<(String, Value)> {
    let accepted = host.backend.accepted().into_iter().map(|notification| {
        let body = notification.body;
        let id = body["job_id"].as_str().or(body["conflicting_job_id"].as_str()).unwrap_or_default().to_owned();
        (id, body)
    });
    accepted.collect()
}

#[tokio::test]
async fn one_id_with_two_requests_at_two_hosts_is_one_job_and_one_conflict() {
    const IDS: usize = 12;
    let mut first = HostProcess::start(&[], &[]).await;
    let bucket = format!("http://{}", first.bucket.address);
    let mut second = HostProcess::start(&[("ATELIER__STORE__ENDPOINT_URL", &bucket)], &[]).await;
    first.wait_for("a handler is ready", 1).await;
    second.wait_for("a handler is ready", 1).await;
    for number in 0..IDS {
        let mut one = job(&format!("two-{number}"));
        let mut other = job(&format!("two-{number}"));
        one["seed"] = json!(1);
        other["seed"] = json!(2);
        tokio::join!(first.post("/generate", &one), second.post("/generate", &other));
    }
    eventually("both requests of every id have their end", || taken(&first).len() + taken(&second).len() >= 2 * IDS)
        .await
        .unwrap();
    let count = |state: &str| first.spooled(state).len() + second.spooled(state).len();
    eventually("all are settled, the losers kept with their reasons", || {
        count("waiting") + count("running") == 0 && count("dead") == 2 * IDS
    })
    .await
    .unwrap();
    let mut ends = BTreeMap::<String, Vec<Value>>::new();
    for (id, body) in taken(&first).into_iter().chain(taken(&second)) {
        ends.entry(id).or_default().push(body);
    }
    for (id, notified) in &ends {
        let complete: Vec<_> = notified.iter().filter(|body| body["type"] == "inference.complete").collect();
        let lost: Vec<_> = notified.iter().filter(|body| body["error"]["code"] == "conflict").collect();
        assert_eq!((notified.len(), complete.len(), lost.len()), (2, 1, 1), "{id}: {notified:?}");
        assert!(lost[0]["job_id"].is_null(), "{id}: {lost:?}");
        let record: Value =
            serde_json::from_slice(&std::fs::read(first.bucket.path(&format!("generations/{id}/result.json"))).unwrap())
                .unwrap();
        let image = &record["images"][0];
        assert_eq!(
            (&complete[0]["images"][0]["key"], &complete[0]["images"][0]["seed"]),
            (&image["key"], &image["seed"]),
            "{id}"
        );
        let file = std::fs::read(first.bucket.path(image["key"].as_str().unwrap())).unwrap();
        assert_eq!(
            base16ct::lower::encode_string(&Sha256::digest(&file)),
            image["sha256"],
            "{id}: the image is that of its record"
        );
        for host in [&first, &second] {
            let document: Value = serde_json::from_str(&host.get(&format!("/jobs/{id}")).await).unwrap();
            assert_eq!((&document["state"], &document["error"]), (&json!("complete"), &Value::Null), "{id}: {document}");
        }
    }
    assert_eq!(ends.len(), IDS);
}

/// No longer one is allowed, and S3 takes keys of 1,024 bytes.
#[tokio::test]
async fn a_job_with_the_longest_id_is_complete() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    let id = "x".repeat(128);
    host.post("/generate", &job(&id)).await;
    let notified = host.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["job_id"]), ("/api/webhooks/inference/complete", &json!(id)));
    let image = &notified.body["images"][0];
    let stored = std::fs::read(host.bucket.path(image["key"].as_str().unwrap())).unwrap();
    let shown = reqwest::get(image["url"].as_str().unwrap()).await.unwrap().bytes().await.unwrap();
    assert_eq!(shown, stored, "it lies where its key says");
    let document: Value = serde_json::from_str(&host.get(&format!("/jobs/{id}")).await).unwrap();
    assert_eq!((&document["state"], &document["result"]["images"][0]["key"]), (&json!("complete"), &image["key"]));
}
