//! What becomes of a message: settled, tried again, put back, dead-lettered.

use std::time::{Duration, Instant, SystemTime};

use atelier::events::Event;
use atelier::host::ended::{End, EndedJob};
use atelier::host::source::rabbitmq::RabbitMq as Queue;
use atelier::host::source::rabbitmq::settings::Settings;
use atelier::host::source::{Message, Shape, Source as _, SourceError};
use atelier::job::outcome::{JobError, Problem};
use atelier::job::trace::Trace;
use atelier::protocol::deferral::DeferReason;
use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use tokio::time::timeout;

use super::{batch, header, holds, make_classic, next, peek, publish, stays_empty, text};
use crate::events::parse;
use crate::servers::DEADLINE;
use crate::servers::rabbitmq::shared_or_skip;

/// What the handler reads out of the event that the host makes of the message.
fn read_by_handler(queue: &Queue, message: &Message) -> (String, u32, Vec<u8>) {
    let Shape::RabbitMq { event_source_arn, queue } = queue.shape() else { panic!("another shape") };
    let event = json!({
        "eventSource": "aws:rmq",
        "eventSourceArn": event_source_arn,
        "rmqMessagesByQueue": { queue: [message.record] },
    });
    let Event::RabbitMq(mut batch) = parse(&event).unwrap() else { panic!("another event") };
    let delivery = batch.deliveries.remove(0);
    (delivery.message_id, delivery.attempt, delivery.body)
}

#[tokio::test]
async fn a_job_comes_once_and_is_gone_when_it_is_acknowledged() {
    let Some(node) = shared_or_skip("RabbitMQ deliveries").await else { return };
    let queue = Queue::start(&node.settings("plain")).unwrap();
    let arn = "arn:aws:mq:local:000000000000:broker:127.0.0.1";
    assert_eq!(queue.shape(), Shape::RabbitMq { event_source_arn: arn.into(), queue: "plain::/".into() });

    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = Trace::from_traceparent(parent);
    queue.send("job-1", b"{\"job_id\":\"job-1\"}", trace).await.unwrap();
    holds(&queue, 1).await;
    let message = next(&queue).await;
    assert_eq!((message.id.as_str(), message.attempt, message.group.as_deref()), ("job-1", 1, None));
    assert!(message.sent.is_some_and(|sent| sent.elapsed().unwrap_or_default() < Duration::from_mins(5)));
    assert_eq!(read_by_handler(&queue, &message), ("job-1".into(), 1, b"{\"job_id\":\"job-1\"}".to_vec()));
    assert_eq!(message.record["basicProperties"]["contentType"], "application/json");
    assert!(message.trace.is_some() && message.trace == trace);
    assert_eq!(message.record["basicProperties"]["headers"]["traceparent"]["bytes"], json!(parent.as_bytes()));
    assert_eq!(message.record["basicProperties"]["deliveryMode"], 2);
    holds(&queue, 0).await;

    queue.ack(&message).await.unwrap();
    let twice = queue.ack(&message).await.unwrap_err();
    assert!(matches!(twice, SourceError::Lost { .. }), "{twice}");
    drop(queue);
    let queue = Queue::start(&node.settings("plain")).unwrap();
    assert!(stays_empty(&queue).await);
}

#[tokio::test]
async fn a_retry_comes_after_its_delay_with_its_attempt_counted_and_the_callers_properties() {
    let Some(node) = shared_or_skip("RabbitMQ retries").await else { return };
    let queue = Queue::start(&node.settings("retries")).unwrap();
    queue.depth().await.unwrap();
    let (_connection, channel) = node.peer().await;
    let mut headers = FieldTable::default();
    headers.insert("trace".into(), text("abc"));
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_message_id("job-2".into())
        .with_correlation_id("c-2".into())
        .with_timestamp(1_700_000_000);
    publish(&channel, "retries", b"{}", properties).await;

    // More often than there are queues to wait in: RabbitMQ drops what goes in circles unless it is asked not to.
    for (attempt, delay_ms, step_ms) in [(1, 1_000, 1_000), (2, 1_500, 2_000), (3, 0, 0), (4, 900, 1_000)] {
        let message = next(&queue).await;
        assert_eq!(message.attempt, attempt);
        assert_eq!(read_by_handler(&queue, &message), ("job-2".into(), attempt, b"{}".to_vec()));
        assert_eq!(message.sent, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        let properties = &message.record["basicProperties"];
        assert_eq!(
            (&properties["correlationId"], &properties["headers"]["trace"]),
            (&json!("c-2"), &json!({ "bytes": b"abc" }))
        );
        let asked = Instant::now();
        queue.retry(&message, Duration::from_millis(delay_ms)).await.unwrap();
        let again = next(&queue).await;
        assert!(asked.elapsed() >= Duration::from_millis(step_ms), "came back after {:?}", asked.elapsed());
        queue.release(&again).await.unwrap();
    }
    let message = next(&queue).await;
    assert_eq!(message.attempt, 5, "released ones are no attempts");
    queue.ack(&message).await.unwrap();
    assert!(stays_empty(&queue).await);
}

#[tokio::test]
async fn a_dead_letter_is_kept_with_its_reason() {
    let Some(node) = shared_or_skip("RabbitMQ dead letters").await else { return };
    let queue = Queue::start(&node.settings("letters")).unwrap();
    queue.send("job-3", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    queue.retry(&message, Duration::ZERO).await.unwrap();
    let message = next(&queue).await;
    queue.dead_letter(&message, "the model was not pleased").await.unwrap();

    let (_connection, channel) = node.peer().await;
    let dead = peek(&channel, "letters.dead").await;
    assert_eq!(dead.data, b"{}");
    assert_eq!(header(&dead, "x-atelier-reason"), Some(&text("the model was not pleased")));
    assert_eq!(header(&dead, "x-atelier-attempt"), Some(&AMQPValue::LongLongInt(2)));
    assert_eq!(dead.properties.message_id().as_ref().map(ToString::to_string).as_deref(), Some("job-3"));
    assert!(stays_empty(&queue).await);
    publish(&channel, "letters", &dead.data, dead.properties).await;
    let again = next(&queue).await;
    assert_eq!((again.attempt, again.deferral), (1, None), "as a shovel sends it, with all its headers: it starts anew");
    queue.ack(&again).await.unwrap();
}

/// A queue that was found dead-letters a message as it came, with what stood in its headers before its job failed.
#[tokio::test]
async fn a_dead_letter_of_a_queue_that_was_found_starts_anew_when_it_is_sent_again() {
    let Some(node) = shared_or_skip("RabbitMQ dead letters of a found queue").await else { return };
    let (_connection, channel) = node.peer().await;
    make_classic(&channel, "found-dead", FieldTable::default()).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-dead-letter-exchange".into(), text(""));
    arguments.insert("x-dead-letter-routing-key".into(), text("found-dead"));
    make_classic(&channel, "found", arguments).await;
    let queue = Queue::start(&Settings { declare: false, ..node.settings("found") }).unwrap();
    queue.send("job-4", b"{}", None).await.unwrap();
    let problem = Problem::from(&JobError::HandlerDied { problem: "it died".into() });
    let ended = Some(EndedJob::failed(End::DeadLetter, 1, problem));
    let message = Message { ended, ..next(&queue).await };
    let delay = Duration::from_millis(1);
    queue.defer(&message, delay, DeferReason::NotificationUndelivered).await.unwrap();
    let waited = next(&queue).await;
    assert!(waited.ended.is_some() && waited.deferral.is_some());
    queue.dead_letter(&Message { ended: None, ..waited }, "it died").await.unwrap();

    let dead = peek(&channel, "found-dead").await;
    publish(&channel, "found", &dead.data, dead.properties).await;
    let again = next(&queue).await;
    assert_eq!((again.attempt, again.deferral, again.ended), (1, None, None));
}

#[tokio::test]
async fn what_the_broker_counts_is_counted_but_not_what_nobody_tried() {
    let Some(node) = shared_or_skip("RabbitMQ attempts").await else { return };
    let settings = Settings { prefetch: 2, ..node.settings("attempts") };
    let queue = Queue::start(&settings).unwrap();
    for id in ["tried", "untried"] {
        queue.send(id, id.as_bytes(), None).await.unwrap();
    }
    let tried = next(&queue).await;
    assert_eq!((tried.id.as_str(), tried.attempt), ("tried", 1));
    holds(&queue, 1).await;
    // The process ends with one message in work: the broker counts it.
    drop(queue);
    let queue = Queue::start(&settings).unwrap();
    let mut again = Vec::new();
    while again.len() < 2 {
        again.extend(batch(&queue, 2).await);
    }
    again.sort_by(|left, right| left.id.cmp(&right.id));
    assert_eq!((again[0].id.as_str(), again[0].attempt), ("tried", 2));
    for message in &again {
        queue.release(message).await.unwrap();
    }
    let mut released = Vec::new();
    while released.len() < 2 {
        released.extend(batch(&queue, 2).await);
    }
    released.sort_by(|left, right| left.id.cmp(&right.id));
    for (before, after) in again.iter().zip(&released) {
        assert_eq!((&after.id, after.attempt), (&before.id, before.attempt), "releasing is no attempt");
        queue.ack(after).await.unwrap();
    }
}

#[tokio::test]
async fn a_classic_queue_is_counted_as_well_as_it_can_be() {
    let Some(node) = shared_or_skip("RabbitMQ classic queues").await else { return };
    let (_connection, channel) = node.peer().await;
    make_classic(&channel, "classic", FieldTable::default()).await;
    publish(&channel, "classic", b"{}", BasicProperties::default()).await;
    let settings = Settings { declare: false, ..node.settings("classic") };
    let queue = Queue::start(&settings).unwrap();
    let message = next(&queue).await;
    assert_eq!(message.attempt, 1);
    assert_eq!(read_by_handler(&queue, &message).0, message.id, "a message without an id gets one");
    drop(queue);
    let queue = Queue::start(&settings).unwrap();
    let mut message = next(&queue).await;
    assert_eq!(message.attempt, 2);
    for attempt in [3, 4] {
        queue.retry(&message, Duration::ZERO).await.unwrap();
        message = next(&queue).await;
        assert_eq!((message.attempt, read_by_handler(&queue, &message).1), (attempt, attempt));
    }
    queue.ack(&message).await.unwrap();
}

#[tokio::test]
async fn no_more_is_taken_than_may_be_in_flight_and_close_puts_back_what_waits() {
    let Some(node) = shared_or_skip("RabbitMQ prefetch").await else { return };
    let settings = Settings { prefetch: 3, ..node.settings("prefetch") };
    let queue = Queue::start(&settings).unwrap();
    let other = Queue::start(&settings).unwrap();
    for number in 0..5 {
        queue.send(&format!("job-{number}"), b"{}", None).await.unwrap();
    }
    holds(&other, 5).await;
    let in_flight = next(&queue).await;
    // Two wait with the first host and two in the queue; the other host sees only the queue.
    holds(&other, 2).await;
    holds(&queue, 4).await;
    queue.close().await;
    holds(&other, 4).await;
    assert!(queue.receive(1).await.unwrap().is_empty(), "nothing is received any more");
    queue.ack(&in_flight).await.unwrap();

    let mut rest = Vec::new();
    while rest.len() < 3 {
        rest.extend(batch(&other, 10).await);
    }
    assert!(stays_empty(&other).await, "three are in flight");
    for message in rest.drain(..) {
        other.ack(&message).await.unwrap();
    }
    other.ack(&next(&other).await).await.unwrap();
    assert!(stays_empty(&other).await);
}

#[tokio::test]
async fn a_receive_that_is_dropped_loses_nothing() {
    let Some(node) = shared_or_skip("RabbitMQ cancelled receives").await else { return };
    let queue = Queue::start(&node.settings("dropped")).unwrap();
    assert!(stays_empty(&queue).await, "and this dropped a receive");
    queue.send("job-4", b"{}", None).await.unwrap();
    holds(&queue, 1).await;
    let message = next(&queue).await;
    assert_eq!((message.id.as_str(), message.attempt), ("job-4", 1));
    queue.ack(&message).await.unwrap();
}

#[tokio::test]
async fn what_waits_too_long_is_handed_back() {
    let Some(node) = shared_or_skip("RabbitMQ waiting").await else { return };
    let settings = Settings { consumer_timeout_seconds: 2, prefetch: 5, ..node.settings("waiting") };
    let queue = Queue::start(&settings).unwrap();
    for id in ["first", "second"] {
        queue.send(id, id.as_bytes(), None).await.unwrap();
    }
    let first = next(&queue).await;
    let began = Instant::now();
    // The second waits behind it, until another host gets it.
    let other = Queue::start(&settings).unwrap();
    let second = next(&other).await;
    assert_eq!(second.id, "second");
    assert!(began.elapsed() >= Duration::from_millis(900), "handed back after {:?}", began.elapsed());
    other.ack(&second).await.unwrap();
    queue.ack(&first).await.unwrap();
}

#[tokio::test]
async fn headers_that_nest_too_deep_go_to_the_dead_letters_and_the_next_job_comes() {
    let Some(node) = shared_or_skip("RabbitMQ headers that nest").await else { return };
    let queue = Queue::start(&node.settings("nested")).unwrap();
    holds(&queue, 0).await;
    let (_connection, channel) = node.peer().await;
    // As deep as the client that publishes it here can write; frame.rs has deeper ones.
    let nested = (0..100).fold(FieldTable::default(), |inner, _| {
        let mut outer = FieldTable::default();
        outer.insert("a".into(), AMQPValue::FieldTable(inner));
        outer
    });
    publish(&channel, "nested", b"{\"job_id\":\"deep\"}", BasicProperties::default().with_headers(nested)).await;
    queue.send("next", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    assert_eq!(message.id, "next");
    queue.ack(&message).await.unwrap();
    assert_eq!(peek(&channel, "nested.dead").await.data, b"{\"job_id\":\"deep\"}");
}

/// Once, the broker's own header on a copy of it made a frame that ended the connection, again and again.
#[tokio::test]
async fn headers_that_fill_a_frame_go_to_the_dead_letters_and_the_next_job_comes() {
    let Some(node) = shared_or_skip("RabbitMQ headers that fill a frame").await else { return };
    let queue = Queue::start(&node.settings("filled")).unwrap();
    holds(&queue, 0).await;
    let (_connection, channel) = node.peer().await;
    for bytes in [60_000, 130_900] {
        let mut headers = FieldTable::default();
        headers.insert("x".into(), text(&"y".repeat(bytes)));
        publish(&channel, "filled", b"{}", BasicProperties::default().with_headers(headers)).await;
    }
    let message = next(&queue).await;
    queue.retry(&message, Duration::from_millis(1)).await.unwrap();
    let message = next(&queue).await;
    assert_eq!((message.attempt, message.body.as_slice()), (2, b"{}".as_slice()), "these leave room for ours");
    queue.ack(&message).await.unwrap();
    queue.send("next", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    assert_eq!(message.id, "next");
    queue.ack(&message).await.unwrap();
    // No client could be given it: the broker's own header on it makes it larger than a frame.
    let kept = async {
        let passive = QueueDeclareOptions::default().passive();
        while channel.queue_declare("filled.dead".into(), passive, FieldTable::default()).await.unwrap().message_count() == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, kept).await.expect("it is kept");
}

#[tokio::test]
async fn what_is_deferred_comes_again_as_the_same_attempt_and_says_why_it_waited() {
    let Some(node) = shared_or_skip("RabbitMQ messages that wait").await else { return };
    // Whatever is unacknowledged for so long is taken back.
    let settings = Settings { consumer_timeout_seconds: 2, prefetch: 1, ..node.settings("deferred") };
    let queue = Queue::start(&settings).unwrap();
    queue.depth().await.unwrap();
    let (_connection, channel) = node.peer().await;
    let mut headers = FieldTable::default();
    headers.insert("trace".into(), text("abc"));
    let properties = BasicProperties::default().with_headers(headers).with_message_id("job-1".into()).with_priority(3);
    publish(&channel, "deferred", b"{}", properties).await;
    queue.retry(&next(&queue).await, Duration::ZERO).await.unwrap();

    let message = next(&queue).await;
    assert_eq!((message.attempt, message.deferral), (2, None));
    let began = Instant::now();
    queue.defer(&message, Duration::from_secs(5), DeferReason::StoreUnavailable).await.unwrap();
    // It takes up no prefetch: the next one can be had.
    queue.send("job-2", b"{}", None).await.unwrap();
    let meanwhile = next(&queue).await;
    assert_eq!(meanwhile.id, "job-2");
    queue.ack(&meanwhile).await.unwrap();
    let again = next(&queue).await;
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((again.id.as_str(), again.attempt, read_by_handler(&queue, &again).1), ("job-1", 2, 2));
    assert_eq!(again.record["basicProperties"]["headers"]["trace"], json!({ "bytes": b"abc" }));
    assert_eq!(again.record["basicProperties"]["priority"], 3);
    let deferral = again.deferral.expect("why it waited");
    assert_eq!(deferral.reason, DeferReason::StoreUnavailable);

    queue.defer(&again, Duration::ZERO, DeferReason::StoreUnavailable).await.unwrap();
    // Another host has it then.
    queue.close().await;
    drop(queue);
    let other = Queue::start(&settings).unwrap();
    let third = next(&other).await;
    assert_eq!((third.attempt, third.deferral), (2, Some(deferral)), "it has waited since then");
    other.retry(&third, Duration::ZERO).await.unwrap();
    let failed = next(&other).await;
    assert_eq!((failed.attempt, failed.deferral), (3, None), "what failed after it counts on");
    other.ack(&failed).await.unwrap();
    assert!(stays_empty(&other).await);
}

#[tokio::test]
async fn what_may_not_wait_in_a_queue_waits_here_and_goes_round_no_faster() {
    let Some(node) = shared_or_skip("RabbitMQ without a queue to wait in").await else { return };
    let queue = Queue::start(&node.settings("cramped")).unwrap();
    queue.send("job-1", b"{}", None).await.unwrap();
    let message = next(&queue).await;
    let (_connection, channel) = node.peer().await;
    // Somebody else's, by the name of ours.
    make_classic(&channel, "cramped.retry.2000", FieldTable::default()).await;
    let began = Instant::now();
    queue.defer(&message, Duration::from_secs(2), DeferReason::Running).await.unwrap();
    let again = next(&queue).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((again.id.as_str(), again.attempt), ("job-1", 1));
    queue.ack(&again).await.unwrap();
}
