//! Jobs that share a denoising batch, from each kind of queue, and what becomes of each when something happens to one.

use std::path::Path;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::sqs::Bench;
use super::{HostProcess, eventually, job, signal};
use crate::servers::http::{Answer, HttpServer, Request};
use crate::servers::rabbitmq;

const SHARED: (&str, &str) = ("ATELIER__HOST__BATCH", "4");
const IDS: [&str; 4] = ["a", "b", "c", "d"];

fn seeded(id: &str, seed: u64) -> Value {
    let mut job = job(id);
    job["seed"] = json!(seed);
    job
}

/// A host that will find these jobs in its spool when it is started again.
async fn with_spooled(changes: &[(&str, &str)], jobs: &[Value]) -> HostProcess {
    let mut host = HostProcess::start(changes, &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.kill();
    for job in jobs {
        host.spool(job["job_id"].as_str().unwrap(), job);
    }
    host
}

/// The jobs that were reported as complete, sorted.
async fn completed(host: &mut HostProcess, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let notified = host.backend.terminal().await;
        assert_eq!(notified.path, "/api/webhooks/inference/complete", "{notified:?}");
        ids.push(notified.body["job_id"].as_str().unwrap().to_owned());
    }
    ids.sort();
    ids
}

/// How many jobs each shared batch had.
fn shared(host: &HostProcess) -> Vec<u64> {
    host.logged("jobs share a batch").iter().map(|line| line["jobs"].as_u64().unwrap()).collect()
}

fn difference(one: &Path, other: &Path) -> u8 {
    let [one, other] = [one, other].map(|path| image::open(path).unwrap().into_rgb8());
    assert_eq!(one.dimensions(), other.dimensions());
    one.as_raw().iter().zip(other.as_raw()).map(|(one, other)| one.abs_diff(*other)).max().unwrap()
}

#[tokio::test]
async fn jobs_that_agree_share_a_batch_and_each_gets_its_own_image() {
    let mut jobs: Vec<Value> = IDS.iter().zip(1..).map(|(id, seed)| seeded(id, seed)).collect();
    let mut other = job("bb");
    other["steps"] = json!(3);
    jobs.insert(2, other);
    let mut host = with_spooled(&[SHARED], &jobs).await;
    host.restart();
    assert_eq!(completed(&mut host, 5).await, ["a", "b", "bb", "c", "d"]);
    assert_eq!(shared(&host), [3], "of the first four one does not agree");
    host.post("/generate", &seeded("alone", 2)).await;
    assert_eq!(completed(&mut host, 1).await, ["alone"]);
    let image = |id: &str| host.bucket.image(id, 0);
    assert_eq!(difference(&image("b"), &image("alone")), 0, "the same seed");
    assert_ne!(difference(&image("a"), &image("alone")), 0, "another seed");
}

/// `callback.metadata` may have 64 KiB, is written into two notifications of each job, and grows when it is written into JSON again.
#[tokio::test]
async fn the_largest_reply_for_the_largest_batch_fits_the_runtime_api() {
    const JOBS: usize = 16;
    let receiver = HttpServer::start(&[Answer::status(200)]).await;
    let ids: Vec<String> = (0..JOBS).map(|number| format!("{number:0>100}")).collect();
    let jobs: Vec<Value> = ids
        .iter()
        .map(|id| {
            let mut job = job(id);
            job["callback"] = json!({ "url": receiver.url("/hook").to_string(), "metadata": { "text": "\"".repeat(32_750) } });
            job
        })
        .collect();
    let changes = [
        ("ATELIER__HOST__BATCH", "16"),
        ("ATELIER__OUTBOUND__ALLOW_HTTP", "true"),
        ("ATELIER__OUTBOUND__ALLOW", "[127.0.0.1]"),
    ];
    let mut host = with_spooled(&changes, &jobs).await;
    host.restart();
    eventually("the spool is empty", || host.spooled("running").is_empty() && host.spooled("waiting").is_empty())
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    assert_eq!(shared(&host), [JOBS as u64], "{}", host.log());
    let requests = receiver.requests();
    let complete = requests.iter().map(Request::json).filter(|body| body["type"] == "inference.complete");
    let mut notified: Vec<String> = complete.map(|body| body["job_id"].as_str().unwrap().to_owned()).collect();
    notified.sort();
    assert_eq!(notified, ids);
    assert_eq!(host.bucket.puts("/result.json"), JOBS);
}

#[tokio::test]
async fn a_handler_that_dies_over_a_batch_takes_each_of_its_jobs_alone_next_time() {
    let jobs = IDS.map(job);
    let mut host = with_spooled(&[SHARED], &jobs).await;
    host.bucket.hold(Some("/0.png"));
    host.restart();
    host.bucket.holding().await;
    signal(Signal::KILL, *host.handlers().last().unwrap());
    host.bucket.hold(None);
    assert_eq!(completed(&mut host, 4).await, IDS);
    assert_eq!(shared(&host), [4]);
    assert_eq!(host.logged("a job is tried again").len(), 4);
    assert_eq!(host.bucket.puts("/result.json"), 4);
    eventually("the spool is empty", || host.spooled("running").is_empty() && host.spooled("waiting").is_empty())
        .await
        .unwrap();
}

#[tokio::test]
async fn one_job_of_a_batch_is_cancelled_and_the_others_go_on() {
    let jobs = IDS.map(|id| {
        let mut job = job(id);
        job["steps"] = json!(200);
        job
    });
    let mut host = with_spooled(&[SHARED], &jobs).await;
    host.restart();
    host.wait_for("listening for HTTP", 2).await;
    host.wait_for("jobs share a batch", 1).await;
    host.is_generating("b").await;
    host.cancel("b").await;
    let mut notified: Vec<(String, Value)> = Vec::new();
    for _ in IDS {
        let notification = host.backend.terminal().await;
        notified.push((notification.body["job_id"].as_str().unwrap().to_owned(), notification.body["error"]["code"].clone()));
    }
    notified.sort_by(|(one, _), (other, _)| one.cmp(other));
    let expected = IDS.map(|id| (id.to_owned(), if id == "b" { json!("cancelled") } else { Value::Null }));
    assert_eq!(notified, expected);
}

#[tokio::test]
async fn messages_of_rabbitmq_share_a_batch() {
    let Some(node) = rabbitmq::shared_or_skip("batches out of RabbitMQ").await else { return };
    let (_connection, channel) = node.peer().await;
    let changes = [
        ("RABBITMQ_HOST", "127.0.0.1".to_owned()),
        ("RABBITMQ_PORT", node.port.to_string()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "shared-batches".to_owned()),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true".to_owned()),
    ];
    let changes: Vec<(&str, &str)> = changes.iter().map(|(name, value)| (*name, value.as_str())).chain([SHARED]).collect();
    let mut host = HostProcess::start(&changes, &[]).await;
    host.wait_for("a handler is ready", 1).await;
    // While it generates this one, the others arrive.
    host.bucket.hold(Some("/0.png"));
    for id in ["first", "a", "b", "c", "d"] {
        let body = job(id).to_string();
        let sent = channel.basic_publish(
            "".into(),
            "shared-batches".into(),
            BasicPublishOptions::default(),
            body.as_bytes(),
            BasicProperties::default(),
        );
        sent.await.unwrap().await.unwrap();
        if id == "first" {
            host.bucket.holding().await;
        }
    }
    host.bucket.hold(None);
    assert_eq!(completed(&mut host, 5).await, ["a", "b", "c", "d", "first"]);
    // The broker may need longer for the last of them than we for the first.
    assert!(!shared(&host).is_empty());
}

#[tokio::test]
async fn messages_of_sqs_share_a_batch() {
    let Some(bench) = Bench::start("batches out of SQS").await else { return };
    let url = bench.queue("batches", &[]).await;
    for id in IDS {
        bench.send(&url, &job(id)).await;
    }
    let mut host = HostProcess::start(&[("SQS_QUEUE_URL", &url), SHARED], &[]).await;
    assert_eq!(completed(&mut host, 4).await, IDS);
    assert_eq!(shared(&host), [4]);
    bench.emptied(&url).await;
}

#[tokio::test]
async fn duplicates_of_a_running_job_keep_nothing_from_an_idle_handler() {
    let Some(node) = rabbitmq::shared_or_skip("duplicates out of RabbitMQ").await else { return };
    let (_connection, channel) = node.peer().await;
    let port = node.port.to_string();
    let changes = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "duplicates"),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
        ("ATELIER__SOURCES__RABBITMQ__PREFETCH", "4"),
    ];
    let mut host = HostProcess::start(&changes, &["--handlers", "2"]).await;
    host.wait_for("a handler is ready", 2).await;
    host.bucket.hold(Some("long/result.json"));
    let publish = async |id: &str| {
        let body = job(id).to_string();
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let sent = channel.basic_publish("".into(), "duplicates".into(), options, body.as_bytes(), properties);
        sent.await.unwrap().await.unwrap();
    };
    for _ in 0..12 {
        publish("long").await;
    }
    host.bucket.holding().await;
    publish("other").await;
    assert_eq!(host.backend.terminal().await.body["job_id"], "other", "{}", host.log());
}

#[tokio::test]
async fn messages_that_share_an_amqp_id_are_kept_apart() {
    let Some(node) = rabbitmq::shared_or_skip("RabbitMQ messages with one id").await else { return };
    let (connection, channel) = node.peer().await;
    let port = node.port.to_string();
    let queue = [
        SHARED,
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", &port),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "one-id"),
        ("ATELIER__SOURCES__RABBITMQ__DECLARE", "true"),
    ];
    let mut host = HostProcess::start(&queue, &[]).await;
    host.wait_for("a handler is ready", 1).await;
    host.post("/generate", &job("first")).await;
    assert_eq!(completed(&mut host, 1).await, ["first"]);
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    let mut jobs: Vec<Value> = IDS.iter().zip(1..).map(|(id, seed)| seeded(id, seed)).collect();
    // One of them is refused: its caller must not get another's end, nor another its.
    jobs[1]["steps"] = json!(0);
    for job in &jobs {
        let properties = BasicProperties::default().with_message_id("the-same".into()).with_delivery_mode(2);
        let body = job.to_string();
        let publish =
            channel.basic_publish("".into(), "one-id".into(), BasicPublishOptions::default(), body.as_bytes(), properties);
        publish.await.unwrap().await.unwrap();
    }
    host.restart();
    let mut notified = Vec::new();
    for _ in IDS {
        let notification = host.backend.terminal().await;
        let (_, kind) = notification.path.rsplit_once('/').unwrap();
        notified.push((notification.body["job_id"].as_str().unwrap().to_owned(), kind.to_owned()));
    }
    notified.sort();
    let expected = [("a", "complete"), ("b", "failed"), ("c", "complete"), ("d", "complete")];
    assert_eq!(notified, expected.map(|(id, kind)| (id.to_owned(), kind.to_owned())));
    assert!(shared(&host).iter().any(|jobs| *jobs > 1), "they were in one event");
    drop(connection);
}
