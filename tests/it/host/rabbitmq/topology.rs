//! Queues that are there, that are not, and that are someone else's; users that may not; TLS.

use std::sync::Mutex;
use std::time::Duration;

use atelier::config::Config;
use atelier::host::source::rabbitmq::RabbitMq as Queue;
use atelier::host::source::rabbitmq::settings::Settings;
use atelier::host::source::{Source as _, SourceError};
use atelier::setting::Secret;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{holds, make_classic, next, peek, stays_empty, text};
use crate::servers::DEADLINE;
use crate::servers::rabbitmq::{LIMITED, shared_or_skip};

fn refusal<T: std::fmt::Debug>(result: Result<T, SourceError>) -> String {
    match result.expect_err("refused") {
        error @ SourceError::Refused { .. } => error.to_string(),
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_missing_queue_is_refused_with_what_to_do() {
    let Some(node) = shared_or_skip("missing RabbitMQ queues").await else { return };
    let settings = Settings { declare: false, ..node.settings("missing") };
    let queue = Queue::start(&settings).unwrap();
    for problem in [
        refusal(queue.depth().await),
        refusal(queue.send("job-1", b"{}", None).await),
        refusal(timeout(DEADLINE, queue.receive(1)).await.expect("the next attempt fails in time")),
    ] {
        assert!(problem.contains("there is no queue \"missing\"") && problem.contains("declare: true"), "{problem}");
    }
    // Someone makes it: the host need not be notified.
    let maker = Queue::start(&node.settings("missing")).unwrap();
    maker.send("job-1", b"{}", None).await.unwrap();
    let message = timeout(DEADLINE, async {
        loop {
            if let Ok(mut messages) = queue.receive(1).await {
                return messages.remove(0);
            }
        }
    });
    assert_eq!(message.await.expect("found in time").id, "job-1");
}

#[tokio::test]
async fn a_job_for_a_queue_that_was_deleted_is_not_accepted() {
    let Some(node) = shared_or_skip("deleted RabbitMQ queues").await else { return };
    let queue = Queue::start(&node.settings("deleted")).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    let (_connection, channel) = node.peer().await;
    channel.queue_delete("deleted".into(), QueueDeleteOptions::default()).await.unwrap();
    let problem = refusal(queue.send("job-2", b"{}", None).await);
    assert!(problem.contains("there is no queue \"deleted\""), "{problem}");
    let long = "x".repeat(300);
    assert!(refusal(queue.send(&long, b"{}", None).await).contains("300 bytes"));
}

#[tokio::test]
async fn a_queue_that_is_full_takes_nothing() {
    let Some(node) = shared_or_skip("full RabbitMQ queues").await else { return };
    let (_connection, channel) = node.peer().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    make_classic(&channel, "full", arguments).await;
    let queue = Queue::start(&Settings { declare: false, ..node.settings("full") }).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    let error = queue.send("job-2", b"{}", None).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unavailable { problem, .. } if problem.contains("full")), "{error}");
    queue.ack(&next(&queue).await).await.unwrap();
    queue.send("job-2", b"{}", None).await.unwrap();
}

/// A queue that would lose what it has confirmed is named at the start, and nothing is accepted for it.
#[tokio::test]
async fn a_queue_that_does_not_keep_its_jobs_is_refused() {
    let Some(node) = shared_or_skip("RabbitMQ queues that lose jobs").await else { return };
    let (connection, channel) = node.peer().await;
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), text("stream"));
    let auto_delete = QueueDeclareOptions { auto_delete: true, durable: true, ..QueueDeclareOptions::default() };
    let exclusive = QueueDeclareOptions { exclusive: true, durable: true, ..QueueDeclareOptions::default() };
    for (name, options, arguments, says) in [
        ("a-stream", QueueDeclareOptions::durable(), stream, "it is a stream"),
        ("auto-deleted", auto_delete, FieldTable::default(), "it is deleted with its last consumer"),
    ] {
        channel.queue_declare(name.into(), options, arguments).await.unwrap();
        for declare in [false, true] {
            let settings = Settings { declare, ..node.settings(name) };
            let found =
                atelier::host::source::rabbitmq::inspect::check(&settings).await.expect_err("found at start").to_string();
            assert!(found.contains("loses jobs") && found.contains(says) && found.contains("durable quorum queue"), "{found}");
        }
        // A broker that was away at the start is asked when it is back.
        let queue = Queue::start(&Settings { declare: false, ..node.settings(name) }).unwrap();
        let problem = refusal(queue.send("job-1", b"{}", None).await);
        assert!(problem.contains(says), "{problem}");
    }
    channel.queue_declare("exclusive".into(), exclusive, FieldTable::default()).await.unwrap();
    let problem = refusal(Queue::start(&Settings { declare: false, ..node.settings("exclusive") }).unwrap().depth().await);
    assert!(problem.contains("exclusive"), "{problem}");
    // One without arguments that keeps its jobs is its owner's business.
    channel.queue_declare("kept".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let kept = Settings { declare: false, ..node.settings("kept") };
    atelier::host::source::rabbitmq::inspect::check(&kept).await.expect("it is used as it is");
    Queue::start(&kept).unwrap().send("job-1", b"{}", None).await.unwrap();
    drop(connection);
}

#[tokio::test]
async fn a_queue_that_is_somebody_elses_is_used_as_it_is() {
    let Some(node) = shared_or_skip("RabbitMQ queues of others").await else { return };
    let (_connection, channel) = node.peer().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text("theirs.failed"));
    make_classic(&channel, "theirs", arguments).await;
    make_classic(&channel, "theirs.failed", FieldTable::default()).await;

    let found = atelier::host::source::rabbitmq::inspect::check(&node.settings("theirs")).await;
    let found = found.expect_err("found at start").to_string();
    assert!(found.contains("is no quorum queue") || found.contains("has other arguments"), "{found}");
    assert!(found.contains("declare: false") && found.contains("docs/migrating.md"), "{found}");
    let problem = refusal(Queue::start(&node.settings("theirs")).unwrap().depth().await);
    assert!(problem.contains("inequivalent arg") && problem.contains("declare: false"), "{problem}");

    let queue = Queue::start(&Settings { declare: false, ..node.settings("theirs") }).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    queue.retry(&message, Duration::from_millis(1)).await.unwrap();
    let message = next(&queue).await;
    assert_eq!(message.attempt, 2);
    queue.dead_letter(&message, "it cannot be generated").await.unwrap();
    let dead = peek(&channel, "theirs.failed").await;
    assert_eq!(dead.properties.message_id().as_ref().map(ToString::to_string).as_deref(), Some("job-1"));
    // Only what waits in between two attempts was made.
    let passive = QueueDeclareOptions::default().passive();
    channel.queue_declare("theirs.retry.1000".into(), passive, FieldTable::default()).await.unwrap();
    channel.queue_declare("theirs.dead".into(), passive, FieldTable::default()).await.unwrap_err();
}

#[tokio::test]
async fn a_user_that_may_make_nothing_still_tries_again() {
    let Some(node) = shared_or_skip("RabbitMQ permissions").await else { return };
    let maker = Queue::start(&node.settings("limited")).unwrap();
    maker.depth().await.unwrap();
    let limited = Settings { user: LIMITED.into(), password: Secret::new(LIMITED), ..node.settings("limited") };
    let problem = refusal(Queue::start(&limited).unwrap().depth().await);
    assert!(problem.contains("ACCESS_REFUSED"), "{problem}");

    let queue = Queue::start(&Settings { declare: false, ..limited.clone() }).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    let mut message = next(&queue).await;
    for attempt in 2..4 {
        queue.retry(&message, Duration::from_mins(1)).await.unwrap();
        message = next(&queue).await;
        assert_eq!(message.attempt, attempt);
    }
    queue.ack(&message).await.unwrap();

    let wrong = Settings { password: Secret::new("wrong"), ..limited };
    let problem = refusal(Queue::start(&wrong).unwrap().depth().await);
    assert!(problem.contains("\"limited\" was not let into") && !problem.contains("wrong"), "{problem}");
    let nowhere = Settings { vhost: "nowhere".into(), ..node.settings("limited") };
    assert!(refusal(Queue::start(&nowhere).unwrap().depth().await).contains("nowhere"));
}

#[tokio::test]
async fn tls_trusts_the_authority_it_is_given_and_no_other() {
    let Some(node) = shared_or_skip("RabbitMQ over TLS").await else { return };
    let tls = Settings { port: node.tls_port, tls: true, ..node.settings("tls") };
    let trusted = Settings { ca_file: Some(node.file("ca.pem")), ..tls.clone() };
    let queue = Queue::start(&trusted).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    queue.ack(&next(&queue).await).await.unwrap();
    assert!(stays_empty(&queue).await);

    let error = Queue::start(&tls).unwrap().depth().await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let plain = Settings { tls: false, ca_file: None, ..trusted.clone() };
    assert!(Queue::start(&plain).unwrap().depth().await.is_err(), "a plain connection to the TLS port");
    for (file, words) in [("missing.pem", "cannot be read"), ("server.key", "must hold certificates")] {
        let wrong = Settings { ca_file: Some(node.file(file)), ..tls.clone() };
        let error = Queue::start(&wrong).err().expect("a wrong setting").to_string();
        assert!(error.starts_with("sources.rabbitmq.ca_file: ") && error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn many_callers_at_once_do_not_get_in_each_others_way() {
    let Some(node) = shared_or_skip("concurrent RabbitMQ callers").await else { return };
    let queue = Queue::start(&node.settings("crowd")).unwrap();
    let long = "x".repeat(300);
    let sent = (0..50).map(|number| {
        let queue = &queue;
        let long = &long;
        async move {
            queue.send(&format!("job-{number:02}"), b"{}", None).await.unwrap();
            queue.send(long, b"{}", None).await.unwrap_err();
            queue.depth().await.unwrap();
        }
    });
    futures::future::join_all(sent).await;
    holds(&queue, 50).await;
    let seen = Mutex::new(Vec::new());
    let done = CancellationToken::new();
    let received = [1, 2, 3].map(async |most| {
        while let Some(messages) = done.run_until_cancelled(queue.receive(most)).await {
            for message in messages.unwrap() {
                queue.ack(&message).await.unwrap();
                seen.lock().unwrap().push(message.id);
            }
            if seen.lock().unwrap().len() == 50 {
                done.cancel();
            }
        }
    });
    timeout(DEADLINE, futures::future::join_all(received)).await.expect("all of them in time");
    let mut seen = seen.into_inner().unwrap();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 50);
}

#[tokio::test]
async fn settings_come_from_the_old_services_environment_and_wrong_ones_are_named() {
    let environment = [
        ("RABBITMQ_HOST", "rabbit"),
        ("RABBITMQ_PORT", "5671"),
        ("RABBITMQ_USER", "u"),
        ("RABBITMQ_PASS", "123"),
        ("MAX_CONCURRENT_GENERATIONS", "4"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let settings = Config::parse("config.yaml", "", &environment).unwrap().sources.rabbitmq;
    assert_eq!((settings.broker(), settings.port, settings.prefetch), (Some("rabbit"), 5671, 4));
    assert_eq!((settings.user.as_str(), settings.password.reveal()), ("u", "123"));
    assert_eq!((settings.queue.as_str(), settings.vhost.as_str(), settings.declare), ("image_generation", "/", false));
    let off = Config::parse("config.yaml", "", &std::collections::BTreeMap::new()).unwrap().sources.rabbitmq;
    assert_eq!(off.broker(), None);

    let good = settings;
    let urls = ["amqp://u:secret@rabbit:5672/vhost", "amqps://rabbit", "rabbit:5672", "u:secret@rabbit", "rabbit/vhost", "a b"];
    for host in urls {
        let error = Queue::start(&Settings { host: Some(host.into()), ..good.clone() }).err().expect(host).to_string();
        assert!(error.contains("RABBITMQ_PORT") && !error.contains("secret"), "{host}: {error}");
    }
    let six = Settings { host: Some("::1".into()), ..good.clone() };
    assert!(Queue::start(&six).is_ok(), "an address of IPv6 has colons");
    for (settings, key) in [
        (off, "host"),
        (Settings { prefetch: 0, ..good.clone() }, "prefetch"),
        (Settings { queue: "q".repeat(300), ..good.clone() }, "queue"),
        (Settings { vhost: String::new(), ..good.clone() }, "vhost"),
        (Settings { heartbeat_seconds: 0, ..good.clone() }, "heartbeat_seconds"),
        (Settings { connect_timeout_ms: 0, ..good.clone() }, "connect_timeout_ms"),
        (Settings { consumer_timeout_seconds: 1, ..good.clone() }, "consumer_timeout_seconds"),
        (Settings { ca_file: Some("ca.pem".into()), ..good.clone() }, "ca_file"),
    ] {
        let error = Queue::start(&settings).err().expect(key).to_string();
        assert!(error.starts_with(&format!("sources.rabbitmq.{key}: ")), "{error}");
    }
}
