//! Brokers that restart, connections that are cut or fall silent, messages that are held for too long.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use atelier::host::ended::EndedJob;
use atelier::host::source::rabbitmq::RabbitMq as Queue;
use atelier::host::source::rabbitmq::settings::Settings;
use atelier::host::source::{Message, Source as _, SourceError};
use atelier::protocol::deferral::DeferReason;
use futures_util::future::join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::{holds, next, stays_empty};
use crate::servers::DEADLINE;
use crate::servers::proxy::Proxy;
use crate::servers::rabbitmq::{own_or_skip, shared_or_skip};

fn through(proxy: &Proxy, settings: Settings) -> Settings {
    Settings { host: Some(proxy.address.ip().to_string()), port: proxy.address.port(), ..settings }
}

fn is_lost(result: Result<(), SourceError>) {
    let error = result.expect_err("the message is not ours any more");
    assert!(matches!(error, SourceError::Lost { .. }), "{error}");
}

/// Waits until the queue can be asked again.
async fn is_back(queue: &Queue) {
    let asked = async {
        while queue.depth().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, asked).await.expect("a new connection in time");
}

#[tokio::test]
async fn a_broker_that_restarts_with_a_job_in_work_delivers_it_again() {
    let Some(mut node) = own_or_skip("a RabbitMQ restart", "").await else { return };
    let queue = Queue::start(&node.settings("restart")).unwrap();
    for id in ["working", "waiting"] {
        queue.send(id, id.as_bytes(), None).await.unwrap();
    }
    let working = next(&queue).await;
    assert_eq!((working.id.as_str(), working.attempt), ("working", 1));
    holds(&queue, 1).await;
    node.stop().await;
    let error = timeout(DEADLINE, queue.send("refused", b"{}", None)).await.expect("an answer in time").unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    node.start_again().await;
    is_back(&queue).await;
    is_lost(queue.ack(&working).await);
    is_lost(queue.retry(&working, Duration::from_secs(1)).await);
    is_lost(queue.release(&working).await);

    let mut again = [next(&queue).await, next(&queue).await];
    again.sort_by(|left, right| left.id.cmp(&right.id));
    let attempts = again.each_ref().map(|message| (message.id.as_str(), message.attempt));
    assert_eq!(attempts, [("waiting", 1), ("working", 2)], "what waited on our set of deliveries was not tried");
    for message in &again {
        queue.ack(message).await.unwrap();
    }
    assert!(stays_empty(&queue).await);
}

#[tokio::test]
async fn a_cut_connection_is_made_again() {
    let Some(node) = shared_or_skip("a cut connection to RabbitMQ").await else { return };
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], node.port))).await;
    let queue = Queue::start(&through(&proxy, node.settings("cut"))).unwrap();
    for id in ["a-working", "b-waiting"] {
        queue.send(id, id.as_bytes(), None).await.unwrap();
    }
    let working = next(&queue).await;
    // The subscription brings the second one as well.
    let other = Queue::start(&node.settings("cut")).unwrap();
    holds(&other, 0).await;
    for cuts in 1..=3 {
        proxy.cut().await;
        is_lost(
            timeout(DEADLINE, async {
                loop {
                    match queue.ack(&working).await {
                        // The cut has not been noticed yet; the broker did not hear it either.
                        Ok(()) => {}
                        lost => return lost,
                    }
                }
            })
            .await
            .expect("an answer in time"),
        );
        let mut again = [next(&queue).await, next(&queue).await];
        again.sort_by(|left, right| left.id.cmp(&right.id));
        let attempts: Vec<_> = again.iter().map(|message| (message.id.as_str(), message.attempt)).collect();
        let untried = if cuts == 1 { 1 } else { cuts };
        assert_eq!(attempts, [("a-working", cuts + 1), ("b-waiting", untried)]);
    }
    let mut left = 2;
    while left > 0 {
        proxy.cut().await;
        match queue.ack(&next(&queue).await).await {
            Ok(()) => left -= 1,
            // It came before the cut was noticed.
            lost => is_lost(lost),
        }
    }
    assert!(stays_empty(&queue).await);
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_given_up() {
    let Some(node) = shared_or_skip("a silent connection to RabbitMQ").await else { return };
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], node.port))).await;
    let settings = Settings { heartbeat_seconds: 1, ..through(&proxy, node.settings("silent")) };
    let queue = Queue::start(&settings).unwrap();
    queue.send("job-5", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    proxy.fall_silent();
    // No one receives: only the silence itself can be noticed.
    let error = timeout(DEADLINE, queue.receive(1)).await.expect("the silence is noticed in time").unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    is_lost(queue.ack(&message).await);
    proxy.cut().await;
    let again = next(&queue).await;
    assert_eq!((again.id, again.attempt), (message.id, 2));
}

#[tokio::test]
async fn a_frozen_broker_is_waited_for_once_by_all_who_send() {
    let Some(node) = shared_or_skip("a frozen RabbitMQ").await else { return };
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], node.port))).await;
    let queue = Queue::start(&through(&proxy, node.settings("frozen"))).unwrap();
    queue.send("before", b"{}", None).await.unwrap();
    proxy.fall_silent();
    let begun = Instant::now();
    let ids: Vec<String> = (0..8).map(|index| format!("job-{index}")).collect();
    let results = join_all(ids.iter().map(|id| queue.send(id, b"{}", None))).await;
    for result in results {
        let error = result.expect_err("nothing was confirmed");
        assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    }
    // One after another they would wait for two minutes.
    assert!(begun.elapsed() < Duration::from_secs(45), "{:?}", begun.elapsed());
    proxy.cut().await;
    is_back(&queue).await;
    queue.send("after", b"{}", None).await.unwrap();
}

#[tokio::test]
async fn a_job_that_takes_longer_than_the_broker_allows_is_lost_and_comes_again() {
    let Some(node) = own_or_skip("RabbitMQ's consumer timeout", "consumer_timeout = 1000").await else { return };
    let queue = Queue::start(&node.settings("overdue")).unwrap();
    queue.send("job-6", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    // The broker closes the channel over it.
    let again = next(&queue).await;
    assert_eq!((again.id.as_str(), again.attempt), ("job-6", 2));
    is_lost(queue.ack(&message).await);
    queue.ack(&again).await.unwrap();
    assert!(stays_empty(&queue).await);
}

#[tokio::test]
async fn a_broker_that_says_nothing_is_left_after_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings {
        host: Some("127.0.0.1".into()),
        port: listener.local_addr().unwrap().port(),
        connect_timeout_ms: 200,
        ..Settings::default()
    };
    let queue = Queue::start(&settings).unwrap();
    let (mut socket, _) = timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    let error = timeout(DEADLINE, queue.receive(1)).await.expect("an answer in time").unwrap_err();
    assert!(
        matches!(&error, SourceError::Unavailable { problem, .. } if problem.contains("no answer within 200 ms")),
        "{error}"
    );
    // The connection is closed, and lapin's thread with it.
    let mut greeting = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut greeting)).await.expect("the connection is closed in time").unwrap();
    assert!(greeting.starts_with(b"AMQP"));
}

#[tokio::test]
async fn a_broker_that_is_short_of_memory_takes_no_jobs_and_still_hears_what_is_done() {
    let Some(node) = own_or_skip("RabbitMQ's memory alarm", "").await else { return };
    let queue = Queue::start(&node.settings("alarm")).unwrap();
    queue.send("job-7", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    node.control(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    for _ in 0..2 {
        let error = timeout(DEADLINE, queue.send("job-8", b"{}", None)).await.expect("an answer in time").unwrap_err();
        assert!(matches!(&error, SourceError::Unavailable { problem, .. } if problem.contains("short of memory")), "{error}");
    }
    queue.ack(&message).await.unwrap();
    drop(queue);
    let queue = Queue::start(&node.settings("alarm")).unwrap();
    assert!(stays_empty(&queue).await, "the broker heard that the job is done");
    node.control(&["set_vm_memory_high_watermark", "0.9"]).await;
    let send = async { while queue.send("job-9", b"{}", None).await.is_err() {} };
    timeout(DEADLINE, send).await.expect("taken again in time");
}

#[tokio::test]
async fn what_a_broker_short_of_memory_takes_no_copy_of_goes_back_and_consumption_goes_on() {
    let Some(node) = own_or_skip("retries under RabbitMQ's memory alarm", "").await else { return };
    let settings = Settings { prefetch: 1, ..node.settings("short") };
    let queue = Queue::start(&settings).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    queue.send("job-2", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    node.control(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    timeout(DEADLINE, queue.retry(&message, Duration::from_millis(100))).await.expect("in time").unwrap();
    let mut attempts = Vec::new();
    while attempts.len() < 2 {
        // Only one may be here at a time: nothing is left behind unacknowledged.
        let message = next(&queue).await;
        attempts.push((message.id.clone(), message.attempt));
        queue.dead_letter(&message, "no").await.unwrap();
    }
    attempts.sort();
    assert_eq!(attempts, [("job-1".to_owned(), 2), ("job-2".to_owned(), 1)]);
    node.control(&["set_vm_memory_high_watermark", "0.9"]).await;
    let (_connection, channel) = node.peer().await;
    let dead = async {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        while channel.queue_declare("short.dead".into(), passive, FieldTable::default()).await.unwrap().message_count() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, dead).await.expect("both are kept in time");
}

/// A job that has ended must not look like one that was never begun: whoever gets it looks for its record and its failure.
#[tokio::test]
async fn of_what_cannot_be_deferred_the_delivery_counts_where_the_job_has_ended() {
    let Some(node) = own_or_skip("deferrals under RabbitMQ's memory alarm", "").await else { return };
    let settings = Settings { prefetch: 1, ..node.settings("undeferred") };
    let queue = Queue::start(&settings).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    node.control(&["set_vm_memory_high_watermark", "absolute", "1"]).await;
    let delay = Duration::from_millis(100);
    timeout(DEADLINE, queue.defer(&message, delay, DeferReason::StoreUnavailable)).await.expect("in time").unwrap();
    let again = next(&queue).await;
    assert_eq!(again.attempt, 1, "it was not tried");
    let ended = Message { ended: Some(EndedJob::complete(1)), ..again };
    timeout(DEADLINE, queue.defer(&ended, delay, DeferReason::NotificationUndelivered)).await.expect("in time").unwrap();
    assert_eq!(next(&queue).await.attempt, 2, "it is looked up");
}
