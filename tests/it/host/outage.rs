//! A store that does not do what it is asked, for longer than all attempts of a job: one end, generated once, no attempt used up.

use std::time::SystemTime;

use reqwest::Client;
use serde_json::{Value, json};

use super::{HostProcess, eventually, job};
use crate::bucket::Trouble;
use crate::servers::rabbitmq;

/// One attempt would end a job that the outage counted against, and the SDK does not hide it.
const ONE_ATTEMPT: [(&str, &str); 3] = [
    ("ATELIER__RUNTIME__MAX_ATTEMPTS", "1"),
    ("ATELIER__STORE__MAX_ATTEMPTS", "1"),
    ("ATELIER__STORE__OPERATION_TIMEOUT_MS", "5000"),
];

const WAITS: &str = "a job waits; this is no attempt";
const AWAY: &str = "the store cannot be used: nothing is received until it can";
const BACK: &str = "the store does what jobs need of it";

async fn started(changes: &[(&str, &str)]) -> HostProcess {
    let mut host = HostProcess::start(&[&ONE_ATTEMPT[..], changes].concat(), &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.wait_for(BACK, 1).await;
    host
}

/// Status and body of `/test`.
async fn readiness(host: &HostProcess) -> (u16, Value) {
    let client = Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{}/test", host.address())).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Waits until the spool is empty; the job was told of once, as complete, and is at its first attempt.
async fn ends_once(host: &mut HostProcess, id: &str) {
    eventually("the job is settled", || host.spooled("waiting").is_empty() && host.spooled("running").is_empty())
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    let notified: Vec<_> =
        host.backend.arrived().into_iter().filter(|notified| !notified.path.ends_with("/progress")).collect();
    assert_eq!(notified.len(), 1, "{notified:?}");
    assert_eq!((notified[0].path.as_str(), &notified[0].body["job_id"]), ("/api/webhooks/inference/complete", &json!(id)));
    assert!(host.spooled("dead").is_empty());
    let done = host.logged("job done");
    assert_eq!(done.iter().map(|line| line["attempt"].clone()).collect::<Vec<_>>(), [json!(1)], "{done:?}");
    assert_eq!(host.bucket.puts("/result.json"), 1);
}

#[tokio::test]
async fn a_store_that_takes_nothing_costs_neither_an_attempt_nor_the_gpu_twice() {
    for (id, trouble, words) in
        [("throttled", Trouble::Away, "status 503"), ("forbidden", Trouble::ReadOnly, "allow s3:PutObject")]
    {
        let mut host = started(&[]).await;
        // The images are made by then.
        host.bucket.hold(Some("/0.png"));
        host.post("/generate", &job(id)).await;
        host.bucket.holding().await;
        host.bucket.trouble(trouble);
        host.bucket.hold(None);
        host.wait_for(WAITS, 1).await;
        host.wait_for("the store cannot be used yet", 3).await;
        let (status, test) = readiness(&host).await;
        assert_eq!((status, &test["status"]), (503, &json!("failed")));
        assert!(test["reason"].as_str().is_some_and(|reason| reason.contains(words)), "{test}");
        assert_eq!(host.metric("atelier_store_available").await, Some(0.0));
        // What comes meanwhile is accepted, and waits.
        host.post("/generate", &job("meanwhile")).await;
        if trouble == Trouble::ReadOnly {
            let document: Value = serde_json::from_str(&host.get(&format!("/jobs/{id}")).await).unwrap();
            assert_eq!((&document["state"], &document["attempt"]), (&json!("queued"), &json!(1)), "{document}");
        }
        assert_eq!(host.logged(AWAY).len(), 1, "{}", host.log());

        host.bucket.trouble(Trouble::None);
        host.wait_for(BACK, 2).await;
        for _ in 0..2 {
            host.backend.terminal().await;
        }
        let done: Vec<Value> = host.logged("job done");
        assert!(done.iter().all(|line| line["attempt"] == 1), "{done:?}");
        assert_eq!(host.metric("vton_inference_count").await, Some(2.0), "each was generated once");
        assert_eq!(host.metric("atelier_held_results_total{event=\"used\"}").await, Some(1.0));
        assert!(host.metric("atelier_deferred_total{reason=\"result_held\",source=\"spool\"}").await >= Some(1.0));
        assert_eq!(host.metric("atelier_store_available").await, Some(1.0));
        eventually("the host is ready", || host.spooled("waiting").is_empty()).await.unwrap();
        assert_eq!(readiness(&host).await.0, 200);
        assert!(host.held().is_empty(), "the record is stored: {:?}", host.held());
    }
}

/// It says yes to everything, and is no store: what it answers is no record that cannot be read.
#[tokio::test]
async fn a_page_in_place_of_the_store_is_waited_for() {
    let mut host = started(&[]).await;
    host.bucket.trouble(Trouble::Page);
    host.post("/generate", &job("behind-a-page")).await;
    host.wait_for(WAITS, 1).await;
    host.wait_for("the store cannot be used yet", 3).await;
    assert!(host.backend.accepted().is_empty(), "{:?}", host.backend.accepted());
    host.bucket.trouble(Trouble::None);
    ends_once(&mut host, "behind-a-page").await;
    assert_eq!(host.metric("vton_inference_count").await, Some(1.0));
}

#[tokio::test]
async fn an_outage_that_outlives_handler_and_host_generates_once() {
    let mut host = started(&[]).await;
    host.bucket.refuse(true);
    host.post("/generate", &job("survivor")).await;
    host.wait_for(WAITS, 1).await;
    assert_eq!(host.held().len(), 1);
    super::signal(rustix::process::Signal::KILL, host.handlers()[0]);
    host.wait_for("a handler is ready", 2).await;
    host.kill();
    host.restart();
    host.wait_for("listening for HTTP", 2).await;
    host.wait_for("a handler is ready", 3).await;
    assert_eq!(readiness(&host).await.0, 503, "still away");
    host.bucket.refuse(false);
    ends_once(&mut host, "survivor").await;
    assert_eq!(host.metric("vton_inference_count").await, Some(0.0), "this host has only stored it");
    assert_eq!(host.metric("atelier_held_results_total{event=\"used\"}").await, Some(1.0));
    assert!(host.held().is_empty());
}

/// Lines of the log with this message whose field has this value.
fn logged(host: &HostProcess, message: &str, field: &str, value: &Value) -> usize {
    host.logged(message).iter().filter(|line| line[field] == *value).count()
}

/// The store does what others need of it: a job whose own objects are denied is no reason to stop them.
#[tokio::test]
async fn a_job_whose_own_keys_are_denied_pauses_the_host_once_and_no_other_job_after() {
    let mut host = started(&[("ATELIER__HOST__MAX_BACKOFF_MS", "200")]).await;
    host.bucket.trouble(Trouble::Denied("/denied/"));
    host.post("/generate", &job("denied")).await;
    host.wait_for(WAITS, 3).await;
    assert_eq!(host.logged(AWAY).len(), 1, "{}", host.log());
    host.post("/generate", &job("other")).await;
    assert_eq!(host.backend.terminal().await.body["job_id"], "other");
    host.wait_for(WAITS, 5).await;
    assert_eq!((host.logged(AWAY).len(), readiness(&host).await.0), (1, 200), "{}", host.log());
    assert_eq!(host.metric("vton_inference_count").await, Some(2.0), "its images wait on the disk");
    host.bucket.trouble(Trouble::None);
    let notified = host.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["job_id"]), ("/api/webhooks/inference/complete", &json!("denied")));
}

/// What has waited for long is not tried every half a minute for ever.
#[tokio::test]
async fn a_job_that_is_denied_for_long_comes_back_every_quarter_of_an_hour() {
    let hour = ("ATELIER__HOST__MAX_BACKOFF_MS", "3600000");
    let mut host = started(&[hour]).await;
    host.kill();
    let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let mut minute = now_ms / 60_000 - 120;
    let mut since = String::new();
    while minute > 0 {
        since.insert(0, char::from_digit((minute % 36) as u32, 36).unwrap());
        minute /= 36;
    }
    let name = format!("{now_ms:013}~{now_ms:013}~0~unique+h{since}~denied");
    std::fs::write(host.directory.path().join("spool/waiting").join(name), job("denied").to_string()).unwrap();
    host.bucket.trouble(Trouble::Denied("/denied/"));
    host.restart();
    eventually("it waits for a quarter of an hour", || logged(&host, WAITS, "delay_ms", &json!(900_000)) == 1)
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    assert_eq!(readiness(&host).await.0, 200);
}

#[tokio::test]
async fn a_lost_disk_means_generating_again_and_that_is_counted() {
    let mut host = started(&[]).await;
    host.bucket.refuse(true);
    host.post("/generate", &job("unlucky")).await;
    host.wait_for(WAITS, 1).await;
    for file in host.held() {
        std::fs::remove_file(file).unwrap();
    }
    host.bucket.refuse(false);
    ends_once(&mut host, "unlucky").await;
    assert_eq!(host.metric("atelier_held_results_total{event=\"generated_again\"}").await, Some(1.0));
}

#[tokio::test]
async fn a_server_without_conditions_is_named_at_start_and_one_host_can_do_without() {
    let mut host = started(&[]).await;
    host.kill();
    host.bucket.trouble(Trouble::NoConditions);
    host.spool("old", &job("old"));
    host.restart();
    host.wait_for("the store cannot be used yet", 1).await;
    host.wait_for("a handler is ready", 2).await;
    let (status, test) = readiness(&host).await;
    let reason = test["reason"].as_str().unwrap_or_default();
    assert!(status == 503 && reason.contains("store.conditional_writes: false"), "{test}");
    assert!(host.logged("job done").is_empty(), "nothing was begun");
    host.kill();
    host.change("ATELIER__STORE__CONDITIONAL_WRITES", "false");
    host.restart();
    let warning = "store.conditional_writes is false: that is safe while one host alone uses the bucket; two could overwrite each \
                   other's results";
    host.wait_for(warning, 1).await;
    ends_once(&mut host, "old").await;
}

#[tokio::test]
async fn a_server_that_refuses_checksum_headers_is_named_at_start_with_the_variable_that_helps() {
    let mut host = started(&[]).await;
    host.kill();
    host.bucket.trouble(Trouble::NoChecksums);
    host.spool("plain", &job("plain"));
    host.restart();
    let line = host.wait_for("the store cannot be used yet", 1).await;
    let problem = line["problem"].as_str().unwrap_or_default();
    assert!(problem.contains("AWS_REQUEST_CHECKSUM_CALCULATION=when_required"), "{problem}");
    host.kill();
    host.change("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required");
    host.restart();
    ends_once(&mut host, "plain").await;
}

#[tokio::test]
async fn a_job_of_rabbitmq_waits_in_a_queue_of_its_own_as_the_same_attempt() {
    let Some(node) = rabbitmq::shared_or_skip("an outage of the store with RabbitMQ").await else { return };
    let port = node.port.to_string();
    let changes = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "outage"),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
    ];
    let mut host = started(&changes).await;
    host.bucket.refuse(true);
    host.post("/generate", &job("from-rabbitmq")).await;
    host.wait_for(WAITS, 1).await;
    host.wait_for("the store cannot be used yet", 2).await;
    host.bucket.refuse(false);
    host.wait_for("job done", 1).await;
    assert_eq!(host.backend.terminal().await.path, "/api/webhooks/inference/complete");
    ends_once_without_spool(&mut host).await;
}

/// As [`ends_once`] for a host with a queue, which has told of the end already.
async fn ends_once_without_spool(host: &mut HostProcess) {
    let done = host.logged("job done");
    assert_eq!(done.iter().map(|line| line["attempt"].clone()).collect::<Vec<_>>(), [json!(1)], "{done:?}");
    assert_eq!(host.metric("vton_inference_count").await, Some(1.0));
    assert!(host.backend.arrived().iter().all(|notified| notified.path.ends_with("/progress")), "one end");
}

#[tokio::test]
async fn a_job_of_sqs_is_held_as_the_same_attempt() {
    let Some(bench) = super::sqs::Bench::start("an outage of the store with SQS").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let changes = [
        ("SQS_QUEUE_URL", url.as_str()),
        ("ATELIER__SOURCES__SQS__WAIT_SECONDS", "1"),
        ("ATELIER__SOURCES__SQS__VISIBILITY_SECONDS", "6"),
    ];
    let mut host = started(&changes).await;
    host.bucket.refuse(true);
    bench.send(&url, &job("from-sqs")).await;
    host.wait_for(WAITS, 1).await;
    // Longer than its visibility timeout.
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    host.bucket.refuse(false);
    assert_eq!(host.backend.terminal().await.path, "/api/webhooks/inference/complete");
    ends_once_without_spool(&mut host).await;
    bench.emptied(&url).await;
}
