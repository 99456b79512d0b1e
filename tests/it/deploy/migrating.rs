//! The commands of docs/migrating.md on a real broker: from the replaced service's classic queue both ways, and no message is lost.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel};
use serde_json::json;

use super::commands::{block, free_port};
use crate::backend::Backend;
use crate::bucket::Bucket;
use crate::process::World;
use crate::servers::rabbitmq::{RabbitMq, own_or_skip};

const QUEUE: &str = "image_generation";
const JOBS: u32 = 3;
const WAIT_LIMIT: Duration = Duration::from_mins(1);

/// A broker as the replaced service left it: a durable classic queue with messages in it, and tools for a person.
struct Old {
    node: RabbitMq,
    channel: Channel,
    _connection: lapin::Connection,
    management_port: u16,
}

async fn old(what: &str) -> Option<Old> {
    let management_port = free_port();
    let conf = format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management_port}\n");
    let node = own_or_skip(what, &conf).await?;
    let (connection, channel) = node.peer().await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await.expect("a classic queue");
    for number in 0..JOBS {
        // Nobody can be told of it and no handler is ready: it stays what it is.
        let body = json!({ "job_id": format!("job-{number}"), "prompt": "a red mug" }).to_string();
        let properties = BasicProperties::default().with_delivery_mode(2);
        let publish =
            channel.basic_publish("".into(), QUEUE.into(), BasicPublishOptions::default(), body.as_bytes(), properties);
        publish.await.expect("published").await.expect("confirmed");
    }
    Some(Old { node, channel, _connection: connection, management_port })
}

impl Old {
    /// Runs a block of the page as it stands.
    async fn run(&self, words: &str, world: &World, directory: &Path) {
        let tools = self.node.tools(self.management_port);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_atelier"), tools.path().join("atelier")).expect("a link");
        let broker = [("RABBITMQ_HOST", "127.0.0.1".to_owned()), ("RABBITMQ_PORT", self.node.port.to_string())];
        let spool = directory.join("spool").display().to_string();
        let own = [
            ("AWS_LAMBDA_RUNTIME_API", ""),
            ("ATELIER__SERVER__PORT", "0"),
            ("ATELIER__SERVER__ADDRESS", "127.0.0.1"),
            ("ATELIER__SOURCES__SPOOL__DIRECTORY", spool.as_str()),
        ];
        let mut command = Command::new("bash");
        command.args(["-ec", &block("docs/migrating.md", words)]).current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        command.env_clear().envs(world.environment(&own)).envs(broker);
        command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", tools.path().display()));
        let output = tokio::task::spawn_blocking(move || command.output().expect("bash")).await.expect("a thread");
        let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        assert!(output.status.success(), "{}\n{}", texts[0], texts[1]);
    }

    /// Waits until the queue, as it is, has so many messages.
    async fn has(&self, queue: &str, messages: u32) {
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            let found =
                self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.expect("the queue is there");
            if found.message_count() == messages {
                return;
            }
            assert!(Instant::now() < deadline, "{queue} has {} messages", found.message_count());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Refuses the first message for good, as a host does with a job that failed.
    async fn refuse_one(&self) {
        let got =
            self.channel.basic_get(QUEUE.into(), BasicGetOptions::default()).await.expect("an answer").expect("a message");
        got.delivery.acker.nack(BasicNackOptions { requeue: false, ..BasicNackOptions::default() }).await.expect("refused");
    }
}

/// Where a host would find the rest; nobody starts a handler here.
async fn world() -> (World, Bucket, Backend) {
    let bucket = Bucket::start().await;
    let backend = Backend::start().await;
    let world = World { runtime_api: ([127, 0, 0, 1], 1).into(), s3: bucket.address, backend: backend.address };
    (world, bucket, backend)
}

#[tokio::test]
async fn the_classic_queue_is_kept_and_gets_dead_letters() {
    let Some(old) = old("the classic queue of docs/migrating.md").await else { return };
    let (world, ..) = world().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    old.run("rabbitmqctl set_policy", &world, directory.path()).await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let publisher = old.channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await;
    publisher.expect("the old publisher's declaration is taken as before");
    old.has(QUEUE, JOBS).await;
    old.refuse_one().await;
    old.has("image_generation.dead", 1).await;
    old.has(QUEUE, JOBS - 1).await;
}

#[tokio::test]
async fn the_classic_queue_becomes_a_quorum_queue_with_the_same_messages() {
    let Some(old) = old("the quorum queue of docs/migrating.md").await else { return };
    let (world, _bucket, _backend) = world().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    old.run("rabbitmqctl set_parameter shovel out", &world, directory.path()).await;
    old.has(QUEUE, JOBS).await;
    old.has("image_generation.dead", 0).await;
    // It is the one that the host made: whoever declares another is told of the first difference.
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let refused = old.channel.queue_declare(QUEUE.into(), durable, FieldTable::default()).await.expect_err("no classic queue");
    assert!(refused.to_string().contains("current is the value 'image_generation.dlx'"), "{refused}");
}
