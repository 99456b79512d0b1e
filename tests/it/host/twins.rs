//! One job at two hosts at once, out of a message that was published twice or delivered twice: one end, whatever becomes of each.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::sqs::Bench;
use super::{HostProcess, eventually, job, signal};

/// Another host over the bucket and the backend of the first one.
pub(crate) async fn beside(first: &HostProcess, changes: &[(&str, &str)]) -> HostProcess {
    let bucket = format!("http://{}", first.bucket.address);
    let backend = format!("http://{}", first.backend.address);
    let same = [("ATELIER__STORE__ENDPOINT_URL", bucket.as_str()), ("BACKEND_API_URL", backend.as_str())];
    let mut second = HostProcess::start(&[&same[..], changes].concat(), &[]).await;
    second.wait_for("a handler is ready", 1).await;
    second
}

/// Every terminal notification so far says that the job failed, under one id; there is no record.
fn has_failed_once(host: &mut HostProcess, id: &str) {
    let notified: Vec<_> =
        host.backend.arrived().into_iter().filter(|notified| !notified.path.ends_with("/progress")).collect();
    assert!(notified.iter().all(|notified| notified.path.ends_with("/failed")), "{notified:?}\n{}", host.log());
    assert!(notified.iter().all(|one| one.webhook_id == notified[0].webhook_id), "{notified:?}");
    assert_eq!(host.bucket.puts("/result.json"), 0);
    assert!(!host.bucket.path(&format!("generations/{id}/result.json")).exists());
    assert!(!host.bucket.image(id, 0).exists(), "its images are dropped");
}

#[tokio::test]
async fn of_a_job_that_was_published_twice_one_fails_and_the_other_ends_so_too() {
    let once = [("ATELIER__RUNTIME__MAX_ATTEMPTS", "1")];
    let mut first = HostProcess::start(&once, &[]).await;
    first.wait_for("a handler is ready", 1).await;
    let mut second = beside(&first, &once).await;
    first.bucket.hold(Some("/0.png"));
    first.post("/generate", &job("twin")).await;
    first.bucket.holding().await;
    second.post("/generate", &job("twin")).await;
    first.bucket.holding().await;
    signal(Signal::KILL, second.handlers()[0]);
    let failed = first.backend.terminal().await;
    assert_eq!(
        (failed.path.as_str(), &failed.body["error"]["code"]),
        ("/api/webhooks/inference/failed", &json!("handler_died"))
    );
    eventually("it is dead-lettered", || second.spooled("dead").len() == 2).await.unwrap();

    first.bucket.hold(None);
    first.wait_for("another attempt ended this job as failed; its images are dropped", 1).await;
    eventually("it is settled", || first.spooled("waiting").is_empty() && first.spooled("running").is_empty())
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", first.log()));
    has_failed_once(&mut first, "twin");
    for host in [&first, &second] {
        let document: Value = serde_json::from_str(&host.get("/jobs/twin").await).unwrap();
        assert_eq!((&document["state"], &document["error"]["code"]), (&json!("failed"), &json!("handler_died")));
    }

    // Its id is free.
    second.wait_for("a handler is ready", 2).await;
    for is_replay in [false, true] {
        let host = if is_replay { &second } else { &first };
        host.post("/generate", &job("twin")).await;
        let notified = loop {
            let notified = first.backend.terminal().await;
            if notified.path.ends_with("/complete") {
                break notified;
            }
            assert_eq!(notified.webhook_id, failed.webhook_id, "{notified:?}");
        };
        assert_eq!(notified.body["job_id"], "twin");
    }
    assert_eq!(first.bucket.puts("/result.json"), 1, "the second time it was a replay");
}

/// A host that is frozen keeps its message no longer: the queue gives it to another one.
#[tokio::test]
async fn a_host_that_was_frozen_over_a_message_hears_that_another_one_failed_it() {
    let Some(bench) = Bench::start("one message at two hosts").await else { return };
    let url = bench.queue("frozen", &[]).await;
    let queue = [
        ("SQS_QUEUE_URL", url.as_str()),
        ("ATELIER__SOURCES__SQS__VISIBILITY_SECONDS", "4"),
        ("ATELIER__SOURCES__SQS__WAIT_SECONDS", "1"),
        ("ATELIER__RUNTIME__MAX_ATTEMPTS", "2"),
    ];
    let mut first = HostProcess::start(&queue, &[]).await;
    first.wait_for("a handler is ready", 1).await;
    first.bucket.hold(Some("/0.png"));
    bench.send(&url, &job("frozen")).await;
    first.bucket.holding().await;
    for pid in [first.child.id(), first.handlers()[0]] {
        signal(Signal::STOP, pid);
    }
    let second = beside(&first, &queue).await;
    first.bucket.holding().await;
    signal(Signal::KILL, second.handlers()[0]);
    assert_eq!(first.backend.terminal().await.path, "/api/webhooks/inference/failed");
    bench.emptied(&url).await;

    first.bucket.hold(None);
    for pid in [first.child.id(), first.handlers()[0]] {
        signal(Signal::CONT, pid);
    }
    first.wait_for("another attempt ended this job as failed; its images are dropped", 1).await;
    eventually("its end is known there", || first.backend.accepted().len() == 2)
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", first.log()));
    has_failed_once(&mut first, "frozen");
}
