//! What becomes of messages that arrive while no one waits for them.

use super::*;

/// Starts a poll for `most` messages and drops it before anything can have arrived.
async fn abandoned_poll(source: &Sqs, most: usize) {
    let poll = timeout(Duration::from_millis(50), source.receive(most)).await;
    assert!(poll.is_err(), "the queue is empty");
}

#[tokio::test]
async fn a_dropped_receive_loses_nothing() {
    let Some(bench) = Bench::start("SQS polls that are dropped").await else { return };
    let url = bench.queue("jobs", &[]).await;
    // The poll must not be over before the message is there.
    let patient = Settings { wait_seconds: 20, ..settings(&url) };
    let source = Sqs::connect(&patient).await.expect("the queue is there");
    let other = bench.source(&url).await;
    abandoned_poll(&source, 10).await;
    source.send("job-1", b"{}", None).await.expect("sent");
    assert!(nothing_for(&other, 13).await, "what has arrived stays ours beyond the visibility timeout");
    assert_eq!(source.depth().await.expect("counted").waiting, 1, "no one has it in flight");
    let message = receive_one(&source).await;
    assert_eq!(message.attempt, 1);
    source.ack(&message).await.expect("settled");
}

#[tokio::test]
async fn no_more_is_handed_out_than_was_asked_for() {
    let Some(bench) = Bench::start("SQS batches").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    for n in 0..3 {
        source.send(&format!("job-{n}"), b"{}", None).await.expect("sent");
    }
    // A poll that is asked for ten and never waited for.
    assert!(timeout(Duration::ZERO, source.receive(10)).await.is_err());
    let mut ids = Vec::new();
    for _ in 0..3 {
        let message = receive_one(&source).await;
        assert_eq!(message.attempt, 1);
        ids.push(message.id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "each message once");
}

#[tokio::test]
async fn close_puts_back_what_a_poll_under_way_brings() {
    let Some(bench) = Bench::start("closing an SQS source").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = Sqs::connect(&Settings { visibility_seconds: 600, wait_seconds: 20, ..settings(&url) })
        .await
        .expect("the queue is there");
    source.send("job-1", b"in flight", None).await.expect("sent");
    let in_flight = receive_one(&source).await;
    abandoned_poll(&source, 10).await;
    let (waiting, closing, sending) = tokio::join!(source.receive(1), source.close(), source.send("job-2", b"late", None));
    assert!(waiting.expect("no error").is_empty(), "nothing is handed out any more");
    let () = closing;
    sending.expect("sent");
    assert!(source.receive(1).await.expect("no error").is_empty());

    let late = receive_one(&bench.source(&url).await).await;
    assert_eq!((late.body.as_slice(), late.attempt), (b"late".as_slice(), 2));
    source.ack(&in_flight).await.expect("what is in flight can still be settled");
    assert_eq!(bench.counts(&url).await, ("0".into(), "1".into()));
}
