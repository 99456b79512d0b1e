//! Whole hosts whose handlers run steps of the user's own.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use super::{UNCHANGED, listed, shell};
use crate::bucket::is_json;
use crate::host::{HostProcess, eventually, is_alive, job, signal};
use crate::servers::http::{Answer, HttpServer};

/// A host with this step, and with one attempt a job.
async fn started(step: &str, settings: Value, changes: &[(&str, &str)]) -> HostProcess {
    let (settings, list) = listed(&[(step, settings)]);
    let names: Vec<&str> = list.iter().map(atelier::workflow::StepName::as_str).collect();
    let list = format!("[{}]", names.join(", "));
    let settings = settings.to_string();
    let own = [
        ("ATELIER__WORKFLOW__STEPS", list.as_str()),
        ("ATELIER__WORKFLOW__USER_STEPS", settings.as_str()),
        ("ATELIER__HOST__INITIAL_BACKOFF_MS", "100"),
    ];
    let mut host = HostProcess::start(&[&own[..], changes].concat(), &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host
}

#[tokio::test]
async fn jobs_wait_in_their_queue_while_a_service_is_away() {
    let server = HttpServer::start(&[Answer::status(503)]).await;
    let settings = serde_json::json!({ "url": server.url("/judge").as_str(), "max_wait_ms": 0 });
    let mut host = started("http:rules", settings, &[("ATELIER__RUNTIME__MAX_ATTEMPTS", "1")]).await;
    for id in ["one", "two"] {
        host.post("/generate", &job(id)).await;
    }
    let waits = host.wait_for("a job waits; this is no attempt", 4).await;
    assert_eq!(waits["reason"], "step_unavailable");
    assert!(host.logged("the store cannot be used: nothing is received until it can").is_empty(), "the store is as it was");
    assert!(host.bucket.keys_put().iter().all(|key| is_json(key)));
    server.script(&[Answer::with(200, &[], UNCHANGED)]);
    let ends = [host.backend.terminal().await, host.backend.terminal().await];
    assert!(ends.iter().all(|end| end.path.ends_with("/complete")), "{ends:?}");
    assert!(host.logged("job done").iter().all(|line| line["attempt"] == 1), "{}", host.log());
    let metrics = host.get("/metrics").await;
    for row in [
        "atelier_deferred_total{reason=\"step_unavailable\",source=\"spool\"}",
        "atelier_user_steps_total{result=\"unavailable\",step=\"http:rules\"}",
        "atelier_user_steps_total{result=\"ok\",step=\"http:rules\"} 2",
        "atelier_step_seconds_count{step=\"http:rules\"} 2",
    ] {
        assert!(metrics.contains(row), "{row} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_handler_that_is_killed_takes_the_program_along_and_the_job_runs_again() {
    let place = tempfile::tempdir().unwrap();
    let runs = place.path().join("runs");
    let script = format!("echo $$ >> runs; while [ ! -e go ]; do sleep 0.05; done; echo '{UNCHANGED}'");
    let mut host = started("command:slow", shell(place.path(), &script), &[]).await;
    host.post("/generate", &job("killed")).await;
    let begun = || -> Vec<u32> {
        let text = fs::read_to_string(&runs).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    eventually("the program runs", || begun().len() == 1).await.unwrap();
    signal(Signal::KILL, host.handlers()[0]);
    eventually("it dies with its handler", || !is_alive(begun()[0])).await.unwrap();
    eventually("it runs again", || begun().len() == 2).await.unwrap();
    fs::write(place.path().join("go"), "").unwrap();
    let end = host.backend.terminal().await;
    assert!(end.path.ends_with("/complete"), "{}", end.body);
    assert_eq!((begun().len(), host.bucket.puts("/result.json")), (2, 1));
}

#[tokio::test]
async fn a_job_is_cancelled_while_its_program_runs() {
    let place = tempfile::tempdir().unwrap();
    let runs = place.path().join("runs");
    let mut host = started("command:slow", shell(place.path(), "echo $$ > runs; sleep 600"), &[]).await;
    host.post("/generate", &job("cancelled")).await;
    let begun = || fs::read_to_string(&runs).ok().and_then(|text| text.trim().parse::<u32>().ok());
    eventually("the program runs", || begun().is_some()).await.unwrap();
    host.cancel("cancelled").await;
    let end = host.backend.terminal().await;
    assert_eq!((end.path.ends_with("/failed"), &end.body["error"]["code"]), (true, &serde_json::json!("cancelled")));
    eventually("it is dead", || begun().is_some_and(|pid| !is_alive(pid))).await.unwrap();
    assert_eq!(host.bucket.puts("/0.png"), 0);
}
