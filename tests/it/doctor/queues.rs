//! Queues that are good, missing, without dead letters, or whose broker is away.

use aws_sdk_sqs::types::QueueAttributeName;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::{BUCKET, examined};
use crate::host::sqs::Bench;
use crate::servers::rabbitmq;
use crate::servers::s3::S3;

#[tokio::test]
async fn sqs_is_asked_for_its_dead_letter_queue() {
    let Some(bench) = Bench::start("atelier doctor and SQS").await else { return };
    let s3 = S3::start(&[BUCKET]).await;
    let of = async |url: &str| examined(&s3, &[("SQS_QUEUE_URL", url)], &[]).await;
    let bare = of(&bench.queue("bare", &[]).await).await;
    bare.expect("sqs", "warn", "no redrive policy");
    bare.expect("spool", "skip", "a queue is configured");
    assert_eq!(bare.of("clock").len(), 2, "S3 and SQS: {}", bare.said);

    bench.queue("dead.fifo", &[]).await;
    let policy = |name: &str, most: u32| {
        format!(r#"{{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:123456789012:{name}","maxReceiveCount":"{most}"}}"#)
    };
    let good = bench.queue("good.fifo", &[(QueueAttributeName::RedrivePolicy, &policy("dead.fifo", 10))]).await;
    let report = of(&good).await;
    assert_eq!(report.code, Some(0), "{}", report.said);
    report.expect("sqs", "ok", "FIFO queue, 0 waiting");
    report.expect("sqs", "ok", "after 10 deliveries");
    let hasty = bench.queue("hasty.fifo", &[(QueueAttributeName::RedrivePolicy, &policy("dead.fifo", 3))]).await;
    of(&hasty).await.expect("sqs", "warn", "maxReceiveCount is 3");

    let brief =
        [(QueueAttributeName::RedrivePolicy, &*policy("dead.fifo", 10)), (QueueAttributeName::MessageRetentionPeriod, "3600")];
    of(&bench.queue("brief.fifo", &brief).await).await.expect("sqs", "fail", "MessageRetentionPeriod is 3600 s");

    let missing = of(&good.replace("good", "missing")).await;
    assert_eq!(missing.code, Some(1));
    missing.expect("sqs", "fail", "there is no such queue");
}

#[tokio::test]
async fn rabbitmq_is_asked_what_its_queue_is_like() {
    let Some(node) = rabbitmq::shared_or_skip("atelier doctor and RabbitMQ").await else { return };
    let s3 = S3::start(&[BUCKET]).await;
    let port = node.port.to_string();
    let of = async |queue: &str, declare: &str, user: &str| {
        let changes = [
            ("RABBITMQ_HOST", "127.0.0.1"),
            ("RABBITMQ_PORT", &port),
            ("RABBITMQ_USER", user),
            ("RABBITMQ_PASS", user),
            ("ATELIER__SOURCES__RABBITMQ__QUEUE", queue),
            ("ATELIER__SOURCES__RABBITMQ__DECLARE", declare),
        ];
        examined(&s3, &changes, &[]).await
    };
    of("doctor-none", "false", "guest").await.expect("rabbitmq", "fail", "there is no queue");
    of("doctor-none", "true", "guest").await.expect("rabbitmq", "ok", "the host makes it");
    of("doctor-none", "false", "guest").await.expect("rabbitmq", "fail", "there is no queue");

    let (connection, channel) = node.peer().await;
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare("doctor-classic".into(), durable, FieldTable::default()).await.unwrap();
    of("doctor-classic", "false", "guest").await.expect("rabbitmq", "warn", "no quorum queue");
    of("doctor-classic", "true", "guest").await.expect("rabbitmq", "fail", "it is no quorum queue");
    of("doctor-classic", "false", rabbitmq::LIMITED).await.expect("rabbitmq", "ok", "may not ask");
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
    channel.queue_declare("doctor-quorum".into(), durable, quorum).await.unwrap();
    of("doctor-quorum", "false", "guest").await.expect("rabbitmq", "warn", "no dead-letter exchange");
    of("doctor-quorum", "true", "guest").await.expect("rabbitmq", "fail", "no dead-letter exchange");

    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("stream".into()));
    channel.queue_declare("doctor-stream".into(), durable, stream).await.unwrap();
    of("doctor-stream", "false", "guest").await.expect("rabbitmq", "fail", "it loses jobs: it is a stream");

    let mut brief = FieldTable::default();
    brief.insert("x-message-ttl".into(), lapin::types::AMQPValue::LongInt(3_600_000));
    channel.queue_declare("doctor-brief".into(), durable, brief).await.unwrap();
    of("doctor-brief", "false", "guest").await.expect("rabbitmq", "fail", "its x-message-ttl is 3600 s");

    let source = atelier::host::source::rabbitmq::RabbitMq::start(&node.settings("doctor-made")).unwrap();
    let ready = async {
        while atelier::host::source::Source::depth(&source).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::servers::DEADLINE, ready).await.unwrap();
    of("doctor-made", "true", "guest").await.expect("rabbitmq", "ok", "a quorum queue with a dead-letter exchange");
    of("doctor-made", "true", "nobody").await.expect("rabbitmq", "fail", "was not let into vhost");
    drop(connection);
}

#[tokio::test]
async fn a_broker_that_is_away_is_reported() {
    let s3 = S3::start(&[BUCKET]).await;
    let report = examined(&s3, &[("RABBITMQ_HOST", "127.0.0.1"), ("RABBITMQ_PORT", "9")], &[]).await;
    assert_eq!(report.code, Some(1));
    report.expect("rabbitmq", "fail", "start the broker");
    report.expect("bucket", "ok", "kept on condition");
}

#[tokio::test]
async fn a_spool_that_cannot_be_written_to_is_reported() {
    let s3 = S3::start(&[BUCKET]).await;
    let report = examined(&s3, &[("ATELIER__SOURCES__SPOOL__DIRECTORY", "/proc/spool")], &[]).await;
    report.expect("spool", "fail", "/proc/spool");
}
