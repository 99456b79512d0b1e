//! Whole hosts with real handlers: kill -9 of either, jobs that kill their handler, deadlines, drains.

use rustix::process::Signal;
use serde_json::json;

use super::{HostProcess, eventually, is_alive, job, python_function, signal};

#[tokio::test]
async fn a_killed_handler_is_replaced_and_its_job_is_generated_again() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    host.bucket.hold(Some("/result.json"));
    host.spool("unlucky", &job("unlucky"));
    host.restart();
    host.bucket.holding().await;
    signal(Signal::KILL, *host.handlers().last().unwrap());
    host.bucket.hold(None);
    let notified = host.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["job_id"]), ("/api/webhooks/inference/complete", &json!("unlucky")));
    let ended = host.wait_for("a handler ended; another is started after a pause", 1).await;
    assert_eq!(ended["cause"], "signal", "{ended}");
    let again = host.wait_for("a job is tried again", 1).await;
    assert_eq!((&again["code"], &again["attempt"]), (&json!("handler_died"), &json!(1)), "{again}");
    eventually("the spool is empty", || host.spooled("running").is_empty() && host.spooled("waiting").is_empty())
        .await
        .unwrap();
    assert_eq!(host.bucket.puts("/result.json"), 1);
    assert!(host.spooled("dead").is_empty());
}

/// A broker may keep a host waiting that has only begun.
#[tokio::test]
async fn a_host_that_is_asked_to_end_while_it_starts_ends_in_order() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let changes = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__CONNECT_TIMEOUT_MS", "600000"),
    ];
    let mut host = HostProcess::start(&changes, &[]).await;
    let (_connection, _) = tokio::time::timeout(super::WAIT_LIMIT, silent.accept()).await.expect("it asks the broker").unwrap();
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    assert_eq!(host.logged("asked to end before anything was accepted")[0]["order"], "SIGTERM");
    assert!(host.handlers().is_empty());
}

/// Once, every line that could not be written ended the task that wrote it: no worker was left, and /health was well.
#[tokio::test]
async fn a_host_whose_log_takes_nothing_works_on() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    host.fill_log();
    host.spool("unheard", &job("unheard"));
    host.restart();
    let notified = host.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["job_id"]), ("/api/webhooks/inference/complete", &json!("unheard")));
    host.terminate();
    assert!(host.ended().await.success());
}

#[tokio::test]
async fn a_killed_host_leaves_no_orphan_and_loses_no_job() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    host.bucket.hold(Some("/0.png"));
    host.spool("in-hand", &job("in-hand"));
    host.spool("behind", &job("behind"));
    host.restart();
    host.bucket.holding().await;
    let handlers = host.handlers();
    host.kill();
    eventually("the handlers die with their host", || handlers.iter().all(|pid| !is_alive(*pid))).await.unwrap();
    host.bucket.hold(None);
    host.restart();
    let mut notified =
        [host.backend.terminal().await, host.backend.terminal().await].map(|notification| notification.body["job_id"].clone());
    notified.sort_by_key(ToString::to_string);
    assert_eq!(notified, [json!("behind"), json!("in-hand")]);
    assert_eq!(host.bucket.puts("/result.json"), 2);
    eventually("the spool is empty", || host.spooled("running").is_empty() && host.spooled("waiting").is_empty())
        .await
        .unwrap();
}

/// A host whose function is the Python one, which does to itself what a job's prompt says.
async fn hostile(changes: &[(&str, &str)]) -> Option<HostProcess> {
    let function = python_function("a function that dies on demand")?;
    let arguments: Vec<&str> = function.iter().map(String::as_str).collect();
    let mut host = HostProcess::start(changes, &arguments).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    Some(host)
}

fn prompt(id: &str, prompt: &str) -> serde_json::Value {
    json!({ "job_id": id, "prompt": prompt })
}

#[tokio::test]
async fn a_job_that_kills_its_handler_is_reported_failed_once_and_kept() {
    let Some(mut host) = hostile(&[]).await else { return };
    host.spool("poison", &prompt("poison", "die"));
    host.restart();
    let notified = host.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["job_id"]), ("/api/webhooks/inference/failed", &json!("poison")));
    assert_eq!((&notified.body["error"]["code"], &notified.body["attempts"]), (&json!("handler_died"), &json!(3)));
    eventually("it lies among the dead", || host.spooled("dead").len() == 2).await.unwrap();
    assert!(host.spooled("running").is_empty() && host.spooled("waiting").is_empty());
    let reason = host.spooled("dead").into_iter().find(|path| path.display().to_string().contains("reason~")).unwrap();
    assert!(std::fs::read_to_string(reason).unwrap().contains("signal 9"));
    host.terminate();
    assert!(host.ended().await.success());
    let more: Vec<_> = host.backend.arrived();
    assert!(more.is_empty(), "reported more than once: {more:?}");
    // Three deaths, three replacements; the host itself was never in danger.
    assert_eq!(host.logged("a handler ended; another is started after a pause").len(), 3, "{}", host.log());
}

#[tokio::test]
async fn a_handler_past_its_deadline_is_ended_and_the_next_job_runs() {
    let Some(mut host) =
        hostile(&[("ATELIER__HOST__HANDLER__JOB_TIMEOUT_MS", "1000"), ("ATELIER__RUNTIME__MAX_ATTEMPTS", "1")]).await
    else {
        return;
    };
    host.spool("stuck", &prompt("stuck", "hang"));
    host.spool("next", &prompt("next", "nothing special"));
    host.restart();
    let notified = host.backend.terminal().await;
    assert_eq!((&notified.body["job_id"], &notified.body["error"]["code"]), (&json!("stuck"), &json!("handler_died")));
    assert!(notified.body["error"]["message"].as_str().unwrap_or_default().contains("deadline"), "{}", notified.body);
    eventually("the next job is settled", || host.spooled("waiting").is_empty() && host.spooled("running").is_empty())
        .await
        .unwrap();
    let ended = host.wait_for("a handler ended; another is started after a pause", 1).await;
    assert_eq!(ended["cause"], "deadline");
}

#[tokio::test]
async fn causes_are_classified() {
    let Some(mut host) = hostile(&[("ATELIER__RUNTIME__MAX_ATTEMPTS", "1")]).await else { return };
    host.spool("exit", &prompt("exit", "exit"));
    host.restart();
    let notified = host.backend.terminal().await;
    assert!(notified.body["error"]["message"].as_str().unwrap_or_default().contains("exit code 3"), "{}", notified.body);
    let ended = host.wait_for("a handler ended; another is started after a pause", 1).await;
    assert_eq!(ended["cause"], "exit");
    eventually("it lies among the dead", || host.spooled("dead").len() == 2).await.unwrap();
    host.kill();
    host.spool("raise", &prompt("raise", "raise"));
    host.restart();
    let notified = host.backend.terminal().await;
    assert_eq!((&notified.body["job_id"], &notified.body["error"]["code"]), (&json!("raise"), &json!("internal")));
    assert!(notified.body["error"]["message"].as_str().unwrap_or_default().contains("told to fail"), "{}", notified.body);
    assert_eq!(host.logged("a handler ended; another is started after a pause").len(), 1, "an exception is no crash");
}

#[tokio::test]
async fn sigterm_finishes_what_runs_and_hands_back_the_rest() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    host.bucket.hold(Some("/0.png"));
    host.spool("running", &job("running"));
    host.spool("waiting", &job("waiting"));
    host.restart();
    host.bucket.holding().await;
    host.terminate();
    host.wait_for("draining: no new jobs; what runs may finish", 1).await;
    host.bucket.hold(None);
    assert!(host.ended().await.success(), "{}", host.log());
    assert_eq!(host.backend.terminal().await.body["job_id"], "running");
    assert_eq!(host.bucket.puts("/result.json"), 1);
    let left = host.spooled("waiting");
    assert_eq!(left.len(), 1);
    assert!(left[0].display().to_string().contains("~0~waiting-unique~"), "no attempt was made: {left:?}");
}

#[tokio::test]
async fn a_second_sigterm_hands_back_at_once() {
    let mut host = HostProcess::start(&[("ATELIER__RUNTIME__SHUTDOWN_GRACE_MS", "1")], &["--drain-seconds", "600"]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    host.bucket.hold(Some("/0.png"));
    host.spool("slow", &job("slow"));
    host.restart();
    host.bucket.holding().await;
    host.terminate();
    host.wait_for("draining: no new jobs; what runs may finish", 1).await;
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    assert_eq!(host.spooled("waiting").len(), 1, "{}", host.log());
    assert!(host.spooled("running").is_empty());
}

/// Has a job running in a handler that is stopped, and cancels it until a pipe to that handler would be full.
async fn freeze(host: &HostProcess, letter: &str) -> String {
    // Long, so that every order is a long line; the server of the tests makes one file name of prefix, id and file.
    let id = letter.repeat(104);
    signal(Signal::STOP, *host.handlers().last().unwrap());
    host.post("/generate", &job(&id)).await;
    eventually("the job was taken", || !host.spooled("running").is_empty()).await.unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for _ in 0..700 {
        let cancel =
            client.delete(format!("http://{}/jobs/{id}", host.address())).header("x-internal-auth", crate::stage::TOKEN);
        // On a slow machine the job may have met its deadline by now.
        cancel.send().await.unwrap();
    }
    id
}

#[tokio::test]
async fn a_frozen_handler_that_reads_no_orders_meets_its_deadline() {
    let changes = [("ATELIER__HOST__HANDLER__JOB_TIMEOUT_MS", "15000"), ("ATELIER__HOST__HANDLER__KILL_GRACE_MS", "500")];
    let mut host = HostProcess::start(&changes, &["--drain-seconds", "600"]).await;
    host.ready().await;
    let frozen = freeze(&host, "f").await;
    let ended = host.wait_for("a handler ended; another is started after a pause", 1).await;
    assert_eq!(ended["cause"], "deadline", "{ended}");
    let notified = host.backend.terminal().await;
    assert_eq!(
        (&notified.body["job_id"], &notified.body["error"]["code"]),
        (&json!(frozen), &json!("cancelled")),
        "{}",
        notified.body
    );
    host.post("/generate", &job("next")).await;
    assert_eq!(host.backend.terminal().await.body["job_id"], "next");
}

#[tokio::test]
async fn a_frozen_handler_that_reads_no_orders_does_not_outlive_the_host() {
    let changes = [("ATELIER__HOST__HANDLER__KILL_GRACE_MS", "500")];
    let mut host = HostProcess::start(&changes, &["--drain-seconds", "600"]).await;
    host.ready().await;
    freeze(&host, "g").await;
    host.terminate();
    host.wait_for("draining: no new jobs; what runs may finish", 1).await;
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    assert_eq!((host.spooled("waiting").len(), host.spooled("running").len()), (1, 0), "{}", host.log());
}
