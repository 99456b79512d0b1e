//! `atelier invoke`: one event in, the reply on standard output, as docs/run-locally.md says.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::World;
use crate::backend::Backend;
use crate::bucket::Bucket;

#[tokio::test]
async fn an_event_is_generated_and_the_reply_is_printed() {
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    // There is no Runtime API in this role.
    let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
    let world = World { runtime_api: nobody, s3: bucket.address, backend: backend.address };
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["invoke", "events/sqs-plain.json"]).current_dir(env!("CARGO_MANIFEST_DIR")).envs(world.environment(&[]));
    let ended = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let reply: Value = serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)));
    assert_eq!(reply, json!({ "batchItemFailures": [] }));
    assert!(backend.terminal().await.path.ends_with("/complete"));
    assert_eq!(bucket.puts("/result.json"), 1);
}

#[tokio::test]
async fn an_event_may_come_from_standard_input() {
    let bucket = Bucket::start().await;
    let mut backend = Backend::start().await;
    let nobody: SocketAddr = ([127, 0, 0, 1], 9).into();
    let world = World { runtime_api: nobody, s3: bucket.address, backend: backend.address };
    let event = std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/events/job-plain.json")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["invoke", "-"]).current_dir(env!("CARGO_MANIFEST_DIR")).envs(world.environment(&[])).stdin(event);
    let ended = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let reply: Value = serde_json::from_slice(&ended.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&ended.stderr)));
    assert_eq!((&reply["status"], &reply["job_id"]), (&json!("complete"), &json!("direct-plain")));
    let record = std::fs::read(bucket.path("generations/direct-plain/result.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((&record["model"], &record["licence"]), (&json!("tiny-sd"), &json!("Apache-2.0")));
    assert!(backend.terminal().await.path.ends_with("/complete"));
}
