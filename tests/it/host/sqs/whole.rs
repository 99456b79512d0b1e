//! A whole host on SQS, as ECS and EC2 spot run it: a job from the queue to the webhook, then the machine is taken away.

use super::*;
use crate::host::{HostProcess, eventually, job};
use crate::servers::http::{Answer, HttpServer};

#[tokio::test]
async fn a_job_from_sqs_is_generated_reported_and_settled_and_the_host_drains_on_notification() {
    let Some(bench) = Bench::start("a whole host on SQS").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let agent = HttpServer::start(&[Answer::with(200, &[], r#"{"protection": {}}"#)]).await;
    let metadata = HttpServer::start(&[Answer::with(200, &[], "token"), Answer::status(404)]).await;
    let changes = [
        ("SQS_QUEUE_URL", url.as_str()),
        ("ATELIER__SOURCES__SQS__WAIT_SECONDS", "2"),
        ("ECS_AGENT_URI", agent.url("").as_str().trim_end_matches('/')),
        ("ATELIER__HOST__INTERRUPTION__ENDPOINT", metadata.url("").as_str()),
        ("ATELIER__HOST__INTERRUPTION__POLL_MS", "50"),
    ]
    .map(|(name, value)| (name, value.to_owned()));
    let changes: Vec<_> = changes.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut host = HostProcess::start(&changes, &[]).await;
    host.wait_for("SQS queue found", 1).await;
    bench.client.send_message().queue_url(&url).message_body(job("from-sqs").to_string()).send().await.expect("sent");

    let notified = host.backend.terminal().await;
    assert_eq!((notified.path.as_str(), &notified.body["job_id"]), ("/api/webhooks/inference/complete", &json!("from-sqs")));
    let cancel_requests = agent.wait_for(2).await;
    assert_eq!([&cancel_requests[0], &cancel_requests[1]].map(|wish| wish.json()["ProtectionEnabled"].clone()), [true, false]);
    metadata.script(&[Answer::with(200, &[], r#"{"action": "terminate", "time": "2026-11-25T08:22:00Z"}"#)]);
    assert!(host.ended().await.success(), "{}", host.log());
    eventually("the log is written", || !host.logged("drained").is_empty()).await.expect("drained");
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()));
}
