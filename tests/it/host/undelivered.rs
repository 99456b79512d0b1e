//! Whole hosts whose callers do not take their notifications: nobody else waits for that, nothing is lost, nobody hears two ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::sqs::Bench;
use super::{HostProcess, WAIT_LIMIT, eventually, job};
use crate::bucket::Trouble;
use crate::servers::http::{Answer, HttpServer, Request};
use crate::servers::rabbitmq;

/// What lets callers name loopback addresses.
const LOOPBACK: [(&str, &str); 2] = [("ATELIER__OUTBOUND__ALLOW_HTTP", "true"), ("ATELIER__OUTBOUND__ALLOW", "[127.0.0.1]")];

fn with_callback(id: &str, receiver: &HttpServer) -> Value {
    let mut job = job(id);
    job["callback"] = json!({ "url": receiver.url("/hook").to_string() });
    job
}

async fn publish(channel: &Channel, queue: &str, job: &Value) {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let body = job.to_string();
    let sent = channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body.as_bytes(), properties);
    sent.await.unwrap().await.unwrap();
}

fn changes<'a>(of_queue: &[(&'a str, &'a str)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&LOOPBACK[..], of_queue, more].concat()
}

/// How often each job's `complete` came to a receiver, and under how many ids.
fn completes(receiver: &HttpServer) -> BTreeMap<String, Vec<String>> {
    let mut ids = BTreeMap::<String, Vec<String>>::new();
    for request in receiver.requests().iter().filter(|request| request.method == "POST") {
        let body = request.json();
        assert_eq!(body["type"], "inference.complete", "{body}");
        let id = body["job_id"].as_str().unwrap().to_owned();
        ids.entry(id).or_default().push(request.header("webhook-id").unwrap().to_owned());
    }
    ids
}

/// What a receiver got that was sent after that second: what a killed host had sent may be read later.
fn sent_after(receiver: &HttpServer, second: u64) -> Vec<Request> {
    let requests = receiver.requests().into_iter();
    requests.filter(|request| request.header("webhook-timestamp").unwrap().parse::<u64>().unwrap() > second).collect()
}

/// How many messages a killed host left in a queue and in those from which they return, when the broker has all of them back:
/// `jobs` of them at least. A host that dies between publishing what waits and acknowledging what came leaves both.
async fn left_behind(connection: &Connection, queue: &str, jobs: usize) -> usize {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let mut before = Vec::new();
    let deadline = Instant::now() + WAIT_LIMIT;
    loop {
        let mut found = Vec::new();
        for waits in ["", ".retry.1000", ".retry.2000", ".retry.5000", ".retry.15000", ".retry.60000", ".retry.300000"] {
            // A queue that is not there costs the channel.
            let channel = connection.create_channel().await.unwrap();
            let queue = channel.queue_declare(format!("{queue}{waits}").into(), passive, FieldTable::default()).await;
            found.push(queue.map_or(0, |queue| queue.message_count()));
        }
        let messages = found.iter().sum::<u32>() as usize;
        // Twice the same, so that none was between two queues.
        if messages >= jobs && found == before {
            return messages;
        }
        assert!(Instant::now() < deadline, "{found:?}");
        before = found;
        sleep(Duration::from_millis(300)).await;
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn callers_who_never_answer_delay_nobody_elses_jobs() {
    const DEAF: usize = 40;
    let Some(node) = rabbitmq::shared_or_skip("callers who never answer").await else { return };
    let (connection, channel) = node.peer().await;
    let port = node.port.to_string();
    let queue = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "deaf"),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
    ];
    let deaf = HttpServer::start(&[Answer::Never]).await;
    let mut host = HostProcess::start(&changes(&queue, &[]), &[]).await;
    host.ready().await;
    let begun = Instant::now();
    for number in 0..DEAF {
        publish(&channel, "deaf", &with_callback(&format!("deaf-{number}"), &deaf)).await;
    }
    for number in 0..5 {
        publish(&channel, "deaf", &job(&format!("good-{number}"))).await;
    }
    let mut notified = Vec::new();
    for _ in 0..5 {
        notified.push(host.backend.terminal().await.body["job_id"].as_str().unwrap().to_owned());
    }
    notified.sort();
    assert_eq!(notified, (0..5).map(|number| format!("good-{number}")).collect::<Vec<_>>());
    // One after the other, with an attempt of ten seconds each, they would have taken six minutes at least.
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
    assert_eq!(host.bucket.puts("/result.json"), DEAF + 5, "all of them are generated");
    // The operator's backend is no stranger that might never answer.
    let waited = host.logged("a notification waits to be sent again");
    let good = waited.iter().filter(|line| line["job_id"].as_str().is_some_and(|id| id.starts_with("good-")));
    assert_eq!(good.collect::<Vec<_>>(), Vec::<&Value>::new());
    host.expect_metric(&format!("atelier_webhook_breakers_open{{receiver=\"{}\"}}", deaf.address), 1.0).await;

    // The host dies, the receiver is well again, another host tells each of them, once for each message.
    host.kill();
    let killed_s = now_s();
    deaf.script(&[Answer::status(200)]);
    eventually("another second has begun", || now_s() > killed_s).await.unwrap();
    let messages = left_behind(&connection, "deaf", DEAF).await;
    host.restart();
    let all = eventually("everybody has heard", || {
        let after = sent_after(&deaf, killed_s);
        let ids: std::collections::BTreeSet<_> =
            after.iter().filter_map(|request| Some(request.header("webhook-id")?.to_owned())).collect();
        ids.len() == DEAF
    });
    all.await.unwrap_or_else(|timeout| panic!("{timeout}: {} heard\n{}", completes(&deaf).len(), host.log()));
    for (id, webhook_ids) in completes(&deaf) {
        assert!(webhook_ids.iter().all(|webhook_id| *webhook_id == webhook_ids[0]), "{id}: {webhook_ids:?}");
    }
    assert_eq!(host.bucket.puts("/result.json"), DEAF + 5, "nothing was generated twice");
    eventually("each message is told of", || sent_after(&deaf, killed_s).len() >= messages).await.unwrap();
    let after = sent_after(&deaf, killed_s);
    let mut once: Vec<_> = after.iter().map(|request| request.json()["job_id"].as_str().unwrap().to_owned()).collect();
    once.sort();
    once.dedup();
    assert_eq!((once.len(), after.len()), (DEAF, messages), "each once");
}

#[tokio::test]
async fn what_nobody_takes_for_too_long_is_dead_lettered_and_reported_when_it_is_sent_again() {
    let Some(node) = rabbitmq::shared_or_skip("notifications that nobody takes").await else { return };
    let (_connection, channel) = node.peer().await;
    let port = node.port.to_string();
    let queue = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "given-up"),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
        ("ATELIER__NOTIFY__GIVE_UP_AFTER_HOURS", "0.001"),
    ];
    let mut host = HostProcess::start(&changes(&queue, &[]), &[]).await;
    host.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    host.ready().await;
    publish(&channel, "given-up", &job("lost-caller")).await;
    let mut dead = channel
        .basic_consume(
            "given-up.dead".into(),
            "".into(),
            BasicConsumeOptions { no_ack: true, ..Default::default() },
            FieldTable::default(),
        )
        .await
        .unwrap();
    let letter = timeout(WAIT_LIMIT, futures_util::StreamExt::next(&mut dead)).await.expect("in time").unwrap().unwrap();
    let headers = letter.properties.headers().clone().unwrap();
    let reason = headers.inner()["x-atelier-reason"].as_long_string().unwrap().to_string();
    assert!(reason.starts_with("webhook_failed: complete to 127.0.0.1:") && reason.contains("502"), "{reason}");
    let notified = host.backend.arrived();
    assert!(notified.iter().all(|notification| !notification.path.ends_with("/failed")), "{notified:?}");
    let document: Value = serde_json::from_str(&host.get("/jobs/lost-caller").await).unwrap();
    assert_eq!(document["state"], "complete", "its record stays");
    host.expect_metric("atelier_notifications_given_up_total{source=\"rabbitmq\"}", 1.0).await;

    host.backend.answer.send_replace(Some(StatusCode::OK));
    let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
    let sent = channel.basic_publish("".into(), "given-up".into(), BasicPublishOptions::default(), &letter.data, properties);
    sent.await.unwrap().await.unwrap();
    eventually("it is told", || !host.backend.accepted().is_empty())
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    assert_eq!(host.backend.accepted()[0].webhook_id, notified[notified.len() - 1].webhook_id);
    assert_eq!(host.bucket.puts("/result.json"), 1, "no handler was needed");
}

#[tokio::test]
async fn a_notification_of_sqs_waits_in_the_host_and_outlives_it() {
    let Some(bench) = Bench::start("notifications of SQS that wait").await else { return };
    let url = bench.queue("untaken", &[]).await;
    let queue = [
        ("SQS_QUEUE_URL", url.as_str()),
        ("ATELIER__SOURCES__SQS__VISIBILITY_SECONDS", "4"),
        ("ATELIER__SOURCES__SQS__WAIT_SECONDS", "1"),
    ];
    let mut host = HostProcess::start(&changes(&queue, &[]), &[]).await;
    host.backend.answer.send_replace(Some(StatusCode::SERVICE_UNAVAILABLE));
    host.ready().await;
    for number in 0..5 {
        bench.send(&url, &job(&format!("untaken-{number}"))).await;
    }
    eventually("all are generated", || host.bucket.puts("/result.json") == 5).await.unwrap();
    host.wait_for("a notification waits to be sent again", 5).await;
    host.kill();
    host.restart();
    host.ready().await;
    host.backend.answer.send_replace(Some(StatusCode::OK));
    eventually("all are told", || host.backend.accepted().len() >= 5)
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    bench.emptied(&url).await;
    let mut ids: Vec<_> =
        host.backend.accepted().iter().map(|notified| notified.body["job_id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    assert_eq!(ids, (0..5).map(|number| format!("untaken-{number}")).collect::<Vec<_>>(), "each once");
    assert_eq!(host.bucket.puts("/result.json"), 5);
}

#[tokio::test]
async fn complete_that_waits_while_the_store_goes_away_stays_the_only_end() {
    let mut host = HostProcess::start(&[("ATELIER__RUNTIME__MAX_ATTEMPTS", "1")], &[]).await;
    host.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    host.ready().await;
    host.post("/generate", &job("patient")).await;
    host.wait_for("a notification waits to be sent again", 1).await;
    host.kill();
    host.bucket.trouble(Trouble::Away);
    host.backend.answer.send_replace(Some(StatusCode::OK));
    host.restart();
    host.wait_for("a handler ended; another is started after a pause", 1).await;
    host.bucket.trouble(Trouble::None);
    eventually("it is told", || !host.backend.accepted().is_empty())
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    eventually("it is settled", || host.spooled("waiting").is_empty() && host.spooled("running").is_empty()).await.unwrap();
    let kinds: Vec<_> = host
        .backend
        .arrived()
        .into_iter()
        .filter(|notified| notified.method != "PATCH")
        .map(|notified| notified.path)
        .collect();
    assert!(kinds.iter().all(|path| path == "/api/webhooks/inference/complete"), "{kinds:?}");
}

#[tokio::test]
async fn sigterm_ends_pending_sends_within_the_drain_time_and_they_are_back_in_their_queue() {
    let deaf = HttpServer::start(&[Answer::Never]).await;
    let mut host = HostProcess::start(&changes(&[], &[]), &["--drain-seconds", "5"]).await;
    host.ready().await;
    for number in 0..3 {
        host.post("/generate", &with_callback(&format!("pending-{number}"), &deaf)).await;
    }
    eventually("all are generated", || host.bucket.puts("/result.json") == 3).await.unwrap();
    eventually("all are being sent", || completes(&deaf).len() == 3).await.unwrap();
    let asked = Instant::now();
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert_eq!((host.spooled("waiting").len(), host.spooled("running").len()), (3, 0), "{}", host.log());
    deaf.script(&[Answer::status(200)]);
    host.restart();
    let empty = eventually("all are told", || host.spooled("waiting").is_empty() && host.spooled("running").is_empty());
    empty.await.unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    assert_eq!(completes(&deaf).len(), 3);
    assert_eq!(host.bucket.puts("/result.json"), 3);
}

/// No queue waits for days in one piece: what a receiver asks for beyond a quarter of an hour is asked again.
#[tokio::test]
async fn a_receiver_that_asks_to_wait_for_days_is_asked_again_in_a_quarter_of_an_hour() {
    let busy = HttpServer::start(&[Answer::with(503, &[("retry-after", "259200")], "")]).await;
    let mut host = HostProcess::start(&LOOPBACK, &[]).await;
    host.ready().await;
    host.post("/generate", &with_callback("later", &busy)).await;
    let waits = host.wait_for("a notification waits to be sent again", 1).await;
    assert_eq!(waits["pause_ms"], 900_000, "{waits}");
}
