//! `atelier dead`: what failed for good in each kind of queue is listed, shown, sent again and removed.

use std::process::{Command, Output};

use atelier::host::source::Source as _;
use atelier::host::source::dead_letters::{DeadLetter, DeadLetters as _, Decision, Operator};
use atelier::host::source::rabbitmq::RabbitMq;
use atelier::host::source::rabbitmq::dead_letters::RabbitMqDeadLetters;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::rabbitmq::next;
use super::sqs::{Bench, receive_one, redriven};
use super::{HostProcess, eventually, job};
use crate::servers::DEADLINE;
use crate::servers::rabbitmq::shared_or_skip;

/// The command with an environment: status, lines, errors.
pub(crate) async fn dead(environment: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.arg("dead").args(arguments).env_clear().envs(environment.iter().copied());
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let Output { status, stdout, stderr } = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

pub(crate) async fn done(environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let (code, lines, errors) = dead(environment, arguments).await;
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{arguments:?}: {lines}");
    lines
}

/// A host that is at work does what is sent again, and knows that only its caller was not told.
#[tokio::test]
async fn a_dead_letter_of_the_spool_is_sent_again_while_the_host_runs() {
    let mut host = HostProcess::start(&[("ATELIER__NOTIFY__GIVE_UP_AFTER_HOURS", "0.001")], &[]).await;
    host.backend.answer.send_replace(Some(StatusCode::BAD_GATEWAY));
    host.ready().await;
    host.post("/generate", &job("lost-caller")).await;
    host.post("/generate", &job("unwanted")).await;
    host.wait_for("a job's caller could not be notified; its message is dead-lettered", 2).await;
    eventually("both are dead, with their reasons", || host.spooled("dead").len() == 4).await.unwrap();
    let spool = host.spooled("dead")[0].parent().unwrap().parent().unwrap().display().to_string();
    let environment = [("ATELIER__SOURCES__SPOOL__DIRECTORY", spool.as_str())];

    let lines = done(&environment, &["list"]).await;
    let listed: Vec<Vec<&str>> = lines.lines().map(|line| line.splitn(5, ' ').collect()).collect();
    let jobs: Vec<_> = listed.iter().map(|columns| (columns[0], columns[2])).collect();
    assert_eq!(jobs, [("spool", "lost-caller"), ("spool", "unwanted")], "{lines}");
    assert!(listed[0][3].starts_with("20") && listed[0][4].starts_with("webhook_failed: complete to 127.0.0.1"), "{lines}");
    let document: Value = serde_json::from_str(&done(&environment, &["show", "lost-caller"]).await).unwrap();
    assert_eq!((&document["id"], &document["body"]["prompt"]), (&json!(listed[0][1]), &job("x")["prompt"]));

    let purged = done(&environment, &["purge", "unwanted"]).await;
    assert_eq!(purged, format!("spool {} unwanted is removed\n", listed[1][1]));
    host.backend.answer.send_replace(Some(StatusCode::OK));
    let puts = host.bucket.puts("/result.json");
    let again = done(&environment, &["retry", listed[0][1]]).await;
    assert_eq!(again, format!("spool {} lost-caller is sent again\n", listed[0][1]));
    eventually("it is told", || !host.backend.accepted().is_empty())
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}\n{}", host.log()));
    assert_eq!(host.backend.accepted()[0].body["job_id"], "lost-caller");
    assert_eq!(host.bucket.puts("/result.json"), puts, "no handler was needed");
    assert_eq!((done(&environment, &["list"]).await.as_str(), host.spooled("dead").len()), ("", 0));
}

#[tokio::test]
async fn what_is_sent_again_while_no_host_runs_is_there_for_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    std::fs::create_dir_all(spool.join("dead")).unwrap();
    let name = "1795930394000~1795930394000~0~unique~job-1";
    std::fs::write(spool.join("dead").join(name), job("job-1").to_string()).unwrap();
    let at = spool.display().to_string();
    let environment = [("ATELIER__SOURCES__SPOOL__DIRECTORY", at.as_str())];
    let lines = done(&environment, &["list"]).await;
    assert_eq!(lines, "spool unique job-1 2026-11-29T05:33:14Z no reason is given\n");
    done(&environment, &["retry", "--all"]).await;
    let settings = atelier::host::source::spool::Settings { directory: spool, ..Default::default() };
    let opened = atelier::host::source::spool::Spool::open(&settings, std::time::Duration::from_mins(1)).unwrap();
    let received = opened.receive(1).await.unwrap();
    assert_eq!((received[0].id.as_str(), received[0].attempt), ("unique", 1));
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let at = spool.display().to_string();
    let environment = [("ATELIER__SOURCES__SPOOL__DIRECTORY", at.as_str())];
    let (code, _, errors) = dead(&environment, &["list"]).await;
    assert!(code == Some(1) && errors.contains("no source is configured (SQS_QUEUE_URL, RABBITMQ_HOST)"), "{errors}");
    std::fs::create_dir_all(spool.join("dead")).unwrap();
    assert_eq!(done(&environment, &["list"]).await, "");
    assert_eq!(done(&environment, &["purge", "--all"]).await, "", "nothing is all there is");
    for command in ["show", "retry", "purge"] {
        let (code, lines, errors) = dead(&environment, &[command, "nobody"]).await;
        assert_eq!((code, lines.as_str()), (Some(1), ""));
        assert!(errors.contains("no dead letter is called \"nobody\" in spool ("), "{errors}");
    }
    // Everything only where it is said.
    for command in ["retry", "purge"] {
        assert_eq!(dead(&environment, &[command]).await.0, Some(2));
        assert_eq!(dead(&environment, &[command, "a", "--all"]).await.0, Some(2));
    }
    let away = [("RABBITMQ_HOST", "127.0.0.1"), ("RABBITMQ_PORT", "9")];
    let (code, _, errors) = dead(&away, &["list", "--from", "rabbitmq"]).await;
    assert!(code == Some(1) && errors.contains("image_generation.dead at 127.0.0.1:9: connect"), "{errors}");
}

#[tokio::test]
async fn dead_letters_of_rabbitmq_are_seen_sent_again_and_removed() {
    let Some(node) = shared_or_skip("atelier dead, RabbitMQ").await else { return };
    let queue = RabbitMq::start(&node.settings("buried")).unwrap();
    for id in ["job-1", "job-2", "job-3"] {
        queue.send(id, job(id).to_string().as_bytes(), None).await.unwrap();
        let message = next(&queue).await;
        queue.dead_letter(&message, &format!("{id} was unlucky")).await.unwrap();
    }
    let port = node.port.to_string();
    let environment = [
        ("RABBITMQ_HOST", "127.0.0.1"),
        ("RABBITMQ_PORT", port.as_str()),
        ("ATELIER__SOURCES__RABBITMQ__QUEUE", "buried"),
        ("ATELIER__SOURCES__SPOOL__DIRECTORY", "/nowhere"),
    ];
    for _ in 0..2 {
        let lines = done(&environment, &["list"]).await;
        let ends: Vec<_> = lines.lines().map(|line| line.split_once(" job-").unwrap().1.split_once(' ').unwrap()).collect();
        assert_eq!(ends.iter().map(|end| end.0).collect::<Vec<_>>(), ["1", "2", "3"], "{lines}");
        assert!(ends[1].1.ends_with(" job-2 was unlucky"), "{lines}");
    }
    assert!(done(&environment, &["retry", "job-2"]).await.ends_with(" job-2 is sent again\n"));
    let again = next(&queue).await;
    assert_eq!((again.body.as_slice(), again.attempt), (job("job-2").to_string().as_bytes(), 1));
    assert!(again.record["basicProperties"]["headers"]["x-atelier-reason"].is_null(), "{}", again.record);
    queue.ack(&again).await.unwrap();
    assert!(done(&environment, &["purge", "job-1"]).await.ends_with(" job-1 is removed\n"));
    let lines = done(&environment, &["list", "--dead-queue", "buried.dead"]).await;
    assert!(lines.contains(" job-3 ") && lines.lines().count() == 1, "{lines}");
    let (code, _, errors) = dead(&environment, &["list", "--dead-queue", "nowhere"]).await;
    assert!(code == Some(1) && errors.contains("no queue 'nowhere'"), "{errors}");
}

/// A host that is at work lets die again what was sent again: that is not of this walk.
#[tokio::test]
async fn sending_all_again_ends_where_they_die_again_at_once() {
    let Some(node) = shared_or_skip("atelier dead while jobs die again").await else { return };
    let queue = RabbitMq::start(&node.settings("dying")).unwrap();
    for id in ["job-1", "job-2", "job-3"] {
        queue.send(id, job(id).to_string().as_bytes(), None).await.unwrap();
        queue.dead_letter(&next(&queue).await, "it was unlucky").await.unwrap();
    }
    let host = tokio::spawn(async move {
        loop {
            queue.dead_letter(&next(&queue).await, "it was unlucky again").await.unwrap();
        }
    });
    let port = node.port.to_string();
    let environment =
        [("RABBITMQ_HOST", "127.0.0.1"), ("RABBITMQ_PORT", port.as_str()), ("ATELIER__SOURCES__RABBITMQ__QUEUE", "dying")];
    let lines = timeout(DEADLINE, done(&environment, &["retry", "--all", "--from", "rabbitmq"])).await.expect("it ends");
    assert_eq!(lines.lines().count(), 3, "{lines}");
    host.abort();
}

/// An operator who only looks.
struct Looks(Vec<DeadLetter>);

impl Operator for Looks {
    fn decide(&mut self, letter: &DeadLetter) -> Decision {
        self.0.push(letter.clone());
        Decision::Keep
    }
}

/// A quorum queue drops what was delivered more often than its limit and is dead-lettered nowhere; since 4.0 each has one.
#[tokio::test]
async fn a_dead_letter_may_be_looked_at_for_ever() {
    let Some(node) = shared_or_skip("atelier dead and the delivery limit of RabbitMQ").await else { return };
    let settings = node.settings("looked-at");
    let queue = RabbitMq::start(&settings).unwrap();
    queue.depth().await.unwrap();
    let policy = ["set_policy", "--apply-to", "queues", "looked-at", "^looked-at[.]dead$", r#"{"delivery-limit":2}"#];
    node.control(&policy).await;
    queue.send("job-1", job("job-1").to_string().as_bytes(), None).await.unwrap();
    let message = next(&queue).await;
    queue.dead_letter(&message, "it was unlucky").await.unwrap();
    let letters = RabbitMqDeadLetters::connect(&settings, None).await.unwrap();
    let mut first = None;
    for look in 0..50 {
        let mut looks = Looks(Vec::new());
        letters.go_through(&mut looks).await.unwrap();
        let [letter] = <[DeadLetter; 1]>::try_from(looks.0).unwrap_or_else(|all| panic!("look {look}: {all:?}"));
        assert_eq!(letter, *first.get_or_insert_with(|| letter.clone()), "look {look}");
    }
    assert_eq!(first.unwrap().reason.as_deref(), Some("it was unlucky"));
}

#[tokio::test]
async fn dead_letters_of_sqs_are_seen_sent_again_and_removed() {
    let Some(bench) = Bench::start("atelier dead, SQS").await else { return };
    bench.queue("dead", &[]).await;
    let url = redriven(&bench, "jobs", "dead").await;
    let source = bench.source(&url).await;
    // More than one answer holds.
    for number in 0..23 {
        let id = format!("job-{number}");
        source.send(&id, job(&id).to_string().as_bytes(), None).await.unwrap();
        source.dead_letter(&receive_one(&source).await, &format!("{id} was unlucky")).await.unwrap();
    }
    let environment = [
        ("SQS_QUEUE_URL", url.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("ATELIER__SOURCES__SPOOL__DIRECTORY", "/nowhere"),
    ];
    // What was looked at can be looked at again at once.
    for _ in 0..2 {
        let lines = done(&environment, &["list"]).await;
        assert_eq!(lines.lines().count(), 23, "{lines}");
        assert!(lines.lines().any(|line| line.ends_with(" job-7 was unlucky") && line.contains(" job-7 20")), "{lines}");
    }
    let document: Value = serde_json::from_str(&done(&environment, &["show", "job-7"]).await).unwrap();
    assert_eq!((&document["source"], &document["body"]), (&json!("sqs"), &job("job-7")));
    let lines = done(&environment, &["retry", "job-7", "job-9"]).await;
    assert!(lines.contains(" job-7 is sent again\n") && lines.contains(" job-9 is sent again\n"), "{lines}");
    let mut bodies = Vec::new();
    for _ in 0..2 {
        let message = receive_one(&source).await;
        assert_eq!(message.attempt, 1);
        source.ack(&message).await.unwrap();
        bodies.push(message.body);
    }
    bodies.sort();
    assert_eq!(bodies, ["job-7", "job-9"].map(|id| job(id).to_string().into_bytes()));
    assert_eq!(done(&environment, &["purge", "--all"]).await.lines().count(), 21);
    assert_eq!(done(&environment, &["list"]).await, "");
}

/// A group of a FIFO queue is locked while a message of it is in somebody's hands, and a name is taken once within five minutes.
#[tokio::test]
async fn letters_of_one_group_are_all_seen_and_can_be_sent_again_at_once() {
    let Some(bench) = Bench::start("atelier dead, SQS FIFO").await else { return };
    bench.queue("dead.fifo", &[]).await;
    let url = redriven(&bench, "jobs.fifo", "dead.fifo").await;
    let source = bench.source(&url).await;
    let environment = [
        ("SQS_QUEUE_URL", url.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ];
    for round in 0..2 {
        for _ in 0..2 {
            if round == 0 {
                source.send("job-1", job("job-1").to_string().as_bytes(), None).await.unwrap();
            }
            source.dead_letter(&receive_one(&source).await, "no luck").await.unwrap();
        }
        assert_eq!(done(&environment, &["list", "--from", "sqs"]).await.lines().count(), 2, "round {round}");
        let lines = done(&environment, &["retry", "job-1", "--from", "sqs"]).await;
        assert_eq!(lines.lines().count(), 2, "{lines}");
    }
    let again = receive_one(&source).await;
    assert_eq!((again.group.as_deref(), again.attempt), (Some("job-1"), 1));
}
