//! What waits for a better time: the same attempt afterwards, whoever has it by then, and however long it took.

use std::sync::Arc;
use std::time::SystemTime;

use atelier::protocol::deferral::{DeferReason, Deferral};

use super::*;
use crate::events::parse;
use crate::servers::proxy::Proxy;

const DELAY: Duration = Duration::from_secs(2);

fn text(value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type("String").string_value(value).build().expect("an attribute")
}

/// As if it had been received so many hours ago.
fn aged(message: &Message, hours: u64) -> Message {
    let received = message.received.checked_sub(Duration::from_hours(hours)).expect("a clock that knows yesterday");
    Message { received, ..message.clone() }
}

/// Which attempt a handler without a host reads out of it.
fn read_by_handler(message: &Message) -> u32 {
    let event = parse(&json!({ "Records": [message.record] })).expect("an event");
    let Event::Sqs(batch) = event else { panic!("not taken for SQS: {event:?}") };
    batch.deliveries[0].attempt
}

#[tokio::test]
async fn what_is_deferred_waits_here_beyond_its_visibility_and_is_the_same_attempt() {
    let Some(bench) = Bench::start("SQS messages that wait").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = Sqs::connect(&Settings { visibility_seconds: 6, ..settings(&url) }).await.expect("the queue is there");
    let other = bench.source(&url).await;
    source.send("job-1", b"{}", None).await.expect("sent");
    let message = receive_one(&source).await;

    let began = Instant::now();
    source.defer(&message, Duration::from_secs(12), DeferReason::StoreUnavailable).await.expect("held");
    assert_eq!(source.depth().await.expect("counted").waiting, 1);
    assert!(nothing_for(&other, 9).await, "twice its visibility timeout would be over");
    let again = receive_one(&source).await;
    assert!(began.elapsed() >= Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!((&again.receipt, again.attempt, read_by_handler(&again)), (&message.receipt, 1, 1), "it was received once");
    let deferral = again.deferral.expect("why it waited");
    assert_eq!(deferral.reason, DeferReason::StoreUnavailable);
    source.defer(&again, Duration::ZERO, DeferReason::StoreUnavailable).await.expect("held");
    let third = receive_one(&source).await;
    assert_eq!(third.deferral, Some(deferral), "it has waited since then");
    source.ack(&third).await.expect("settled");
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()));
}

#[tokio::test]
async fn before_the_twelve_hours_are_over_a_copy_takes_its_place() {
    let Some(bench) = Bench::start("SQS messages that wait for hours").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    let parent = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1";
    let trace = aws_sdk_sqs::types::MessageSystemAttributeValue::builder().data_type("String").string_value(parent).build();
    let send = bench.client.send_message().queue_url(&url).message_body("{\"job_id\": \"é\"}").message_group_id("tenant-7");
    let send = send.message_system_attributes(
        aws_sdk_sqs::types::MessageSystemAttributeNameForSends::AwsTraceHeader,
        trace.expect("a trace"),
    );
    send.message_attributes("tier", text("gold")).send().await.expect("sent");
    source.retry(&receive_one(&source).await, Duration::ZERO).await.expect("put back");
    let second = receive_one(&source).await;
    assert_eq!(second.attempt, 2);

    source.defer(&aged(&second, 11), DELAY, DeferReason::NotificationUndelivered).await.expect("sent again");
    let began = Instant::now();
    let copy = receive_one(&source).await;
    assert!(began.elapsed() + Duration::from_secs(1) >= DELAY, "{:?}", began.elapsed());
    assert_ne!(copy.id, second.id);
    assert_eq!((copy.attempt, read_by_handler(&copy)), (2, 2), "SQS counts from 1 again, we do not");
    assert_eq!((&copy.body, copy.trace), (&second.body, second.trace));
    assert!(copy.trace.is_some());
    assert_eq!(copy.record["messageAttributes"]["tier"]["stringValue"], "gold");
    assert_eq!(copy.record["attributes"]["MessageGroupId"], "tenant-7");
    assert_eq!(copy.deferral.map(|deferral| deferral.reason), Some(DeferReason::NotificationUndelivered));

    // What fails after it counts on, and a copy of a copy knows where it began.
    source.retry(&copy, Duration::ZERO).await.expect("put back");
    let third = receive_one(&source).await;
    assert_eq!(third.attempt, 3);
    source.defer(&aged(&third, 11), Duration::ZERO, DeferReason::NotificationUndelivered).await.expect("sent again");
    let last = receive_one(&source).await;
    let kept = last.record["messageAttributes"]["atelier-deferred"]["stringValue"].as_str().expect("our attribute");
    let kept: serde_json::Value = serde_json::from_str(kept).expect("JSON");
    assert_eq!((last.attempt, &kept["attempts"], &kept["message_id"]), (3, &json!(2), &json!(second.id)));
    assert_eq!(last.deferral, copy.deferral);
    source.ack(&last).await.expect("settled");
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()), "nothing is there twice");
}

#[tokio::test]
async fn a_host_that_ends_hands_on_what_waits_and_takes_no_more_in() {
    let Some(bench) = Bench::start("SQS hosts that end while messages wait").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    let other = bench.source(&url).await;
    for n in 0..2 {
        source.send(&format!("job-{n}"), b"{}", None).await.expect("sent");
    }
    let first = receive_one(&source).await;
    let second = receive_one(&source).await;
    source.defer(&first, Duration::from_hours(1), DeferReason::StoreUnavailable).await.expect("held");
    source.defer(&second, DELAY, DeferReason::StoreUnavailable).await.expect("held");
    source.close().await;
    assert_eq!(bench.counts(&url).await.1, "0", "nothing is in flight here");
    let handed_on = receive_one(&other).await;
    assert_eq!((handed_on.attempt, read_by_handler(&handed_on)), (1, 1));
    assert!(handed_on.deferral.is_some());
    other.ack(&handed_on).await.expect("settled");

    // A job that was still under way when the host began to end.
    bench.client.purge_queue().queue_url(&url).send().await.expect("purged");
    other.send("job-2", b"{}", None).await.expect("sent");
    let late = receive_one(&other).await;
    other.close().await;
    other.defer(&late, Duration::ZERO, DeferReason::StoreUnavailable).await.expect("handed on");
    let third = bench.source(&url).await;
    let late = receive_one(&third).await;
    assert_eq!(late.attempt, 1);
    third.ack(&late).await.expect("settled");
}

/// The host ends while SQS is asked: nothing looks after what waits here any more.
#[tokio::test]
async fn what_comes_in_while_the_host_ends_is_handed_on() {
    let Some(bench) = Bench::start("SQS messages that wait while their host ends").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let proxy = Proxy::start(bench.moto.address).await;
    let through = Settings { endpoint_url: Some(format!("http://{}", proxy.address)), ..settings(&url) };
    let source = Arc::new(Sqs::connect(&through).await.expect("the queue is there"));
    source.send("job-1", b"{}", None).await.expect("sent");
    let message = receive_one(&source).await;
    proxy.fall_silent();
    let deferring = {
        let source = source.clone();
        tokio::spawn(async move { source.defer(&message, DELAY, DeferReason::StoreUnavailable).await })
    };
    // Until its request is on its way.
    tokio::time::sleep(Duration::from_millis(300)).await;
    timeout(DEADLINE, source.close()).await.expect("it waits for nobody");
    assert!(!deferring.is_finished());
    proxy.cut().await;
    timeout(DEADLINE, deferring).await.expect("in time").expect("no panic").expect("handed on");
    let handed_on = receive_one(&bench.source(&url).await).await;
    assert_eq!((handed_on.attempt, handed_on.deferral.is_some()), (1, true), "not what SQS brings back by itself");
}

#[tokio::test]
async fn ten_attributes_leave_no_room_and_the_attempt_is_counted() {
    let Some(bench) = Bench::start("SQS messages that wait and have ten attributes").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    let ten = (0..10).map(|n| (format!("a{n}"), text("x"))).collect();
    let send = bench.client.send_message().queue_url(&url).message_body("{}").set_message_attributes(Some(ten));
    send.send().await.expect("sent");
    let message = receive_one(&source).await;
    source.defer(&aged(&message, 11), Duration::ZERO, DeferReason::StoreUnavailable).await.expect("hidden");
    let again = receive_one(&source).await;
    assert_eq!((again.id, again.attempt), (message.id, 2));
}

#[tokio::test]
async fn what_waits_keeps_its_place_in_its_fifo_group() {
    let Some(bench) = Bench::start("SQS FIFO messages that wait").await else { return };
    let url = bench.queue("jobs.fifo", &[]).await;
    let source = bench.source(&url).await;
    for n in 1..=2 {
        let send = bench.client.send_message().queue_url(&url).message_group_id("user-7");
        send.message_deduplication_id(n.to_string()).message_body(format!("{n}")).send().await.expect("sent");
    }
    let first = receive_one(&source).await;
    source.defer(&first, DELAY, DeferReason::Running).await.expect("held");
    let again = receive_one(&source).await;
    assert_eq!((again.body.as_slice(), again.attempt), (b"1".as_slice(), 1), "not the second one before it");
    let since = again.deferral.expect("why it waited");
    assert_eq!(since, Deferral::new(DeferReason::Running, since.since()));
    assert!(since.waited(SystemTime::now()) < DEADLINE);
    source.defer(&again, Duration::ZERO, DeferReason::Running).await.expect("held");
    source.close().await;
    let other = bench.source(&url).await;
    assert_eq!(receive_one(&other).await.body, b"1");
}
