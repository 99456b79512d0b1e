//! Where a message goes that failed for good.

use atelier::host::ended::EndedJob;

use super::*;

fn text(value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type("String").string_value(value).build().expect("an attribute")
}

#[tokio::test]
async fn a_failed_message_is_moved_with_its_attributes_and_the_reason() {
    let Some(bench) = Bench::start("SQS dead-letter queues").await else { return };
    let dead = bench.queue("dead", &[]).await;
    let url = redriven(&bench, "jobs", "dead").await;
    let source = bench.source(&url).await;
    let send = bench.client.send_message().queue_url(&url).message_body("{\"job_id\": \"é\"}");
    send.message_attributes("tier", text("gold")).send().await.expect("sent");
    source.dead_letter(&receive_one(&source).await, "the handler died\nby signal 9").await.expect("moved");
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()));

    let moved = receive_one(&bench.source(&dead).await).await;
    assert_eq!(moved.body, "{\"job_id\": \"é\"}".as_bytes());
    let attributes = &moved.record["messageAttributes"];
    assert_eq!(attributes["tier"]["stringValue"], "gold");
    assert_eq!(attributes["atelier-reason"]["stringValue"], "the handler died by signal 9");
}

#[tokio::test]
async fn ten_attributes_or_a_full_mebibyte_leave_no_room_for_the_reason() {
    let Some(bench) = Bench::start("SQS dead letters without room").await else { return };
    let dead = bench.source(&bench.queue("dead", &[]).await).await;
    let url = redriven(&bench, "jobs", "dead").await;
    let source = bench.source(&url).await;
    let ten = (0..10).map(|n| (format!("a{n}"), text("x"))).collect();
    let send = bench.client.send_message().queue_url(&url).message_body("{}").set_message_attributes(Some(ten));
    send.send().await.expect("sent");
    source.send("job-2", "x".repeat(1 << 20).as_bytes(), None).await.expect("sent");
    for _ in 0..2 {
        source.dead_letter(&receive_one(&source).await, "no luck").await.expect("moved");
    }
    let moved = [receive_one(&dead).await, receive_one(&dead).await];
    let mut counts = moved.map(|message| message.record["messageAttributes"].as_object().expect("a map").len());
    counts.sort_unstable();
    assert_eq!(counts, [0, 10]);
}

/// How the job ended stands in the bucket too: it never keeps a message from being kept.
#[tokio::test]
async fn how_a_job_ended_goes_along_where_there_is_room_for_it() {
    let Some(bench) = Bench::start("SQS dead letters of jobs that have ended").await else { return };
    let dead = bench.source(&bench.queue("dead", &[]).await).await;
    let url = redriven(&bench, "jobs", "dead").await;
    let source = bench.source(&url).await;
    // Attributes of its own, bytes of its body, and which of ours there is room for.
    let rows = [(8, 2, true, true), (9, 2, true, false), (10, 2, false, false), (0, 1 << 20, false, false)];
    for (own, bytes, has_end, has_reason) in rows {
        let attributes = (0..own).map(|n| (format!("a{n}"), text("x"))).collect::<HashMap<_, _>>();
        let send = bench.client.send_message().queue_url(&url).message_body("x".repeat(bytes));
        send.set_message_attributes(Some(attributes)).send().await.expect("sent");
        let ended = Message { ended: Some(EndedJob::complete(1)), ..receive_one(&source).await };
        source.dead_letter(&ended, "webhook_failed: nobody took it").await.expect("moved");
        let moved = receive_one(&dead).await;
        dead.ack(&moved).await.expect("settled");
        let names = moved.record["messageAttributes"].as_object().expect("a map");
        let found = (moved.ended.is_some(), names.contains_key("atelier-reason"), names.len(), moved.body.len());
        let ours = usize::from(has_end) + usize::from(has_reason);
        assert_eq!(found, (has_end, has_reason, own + ours, bytes), "{own} attributes, {bytes} bytes");
    }
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()));
}

#[tokio::test]
async fn a_fifo_queue_keeps_its_group_in_the_dead_letter_queue() {
    let Some(bench) = Bench::start("SQS FIFO dead letters").await else { return };
    let dead = bench.queue("dead.fifo", &[]).await;
    let source = bench.source(&redriven(&bench, "jobs.fifo", "dead.fifo").await).await;
    source.send("job-1", b"{}", None).await.expect("sent");
    let message = receive_one(&source).await;
    source.dead_letter(&message, "no luck").await.expect("moved");
    let moved = receive_one(&bench.source(&dead).await).await;
    assert_eq!(moved.group.as_deref(), Some("job-1"));
    assert_eq!(moved.record["attributes"]["MessageDeduplicationId"], message.id.as_str());
}

#[tokio::test]
async fn without_a_redrive_policy_a_failed_message_is_deleted() {
    let Some(bench) = Bench::start("SQS without a dead-letter queue").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    source.send("job-1", b"{}", None).await.expect("sent");
    source.dead_letter(&receive_one(&source).await, "no luck").await.expect("settled");
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()));
}

#[tokio::test]
async fn a_dead_letter_queue_that_went_away_keeps_the_message_in_flight() {
    let Some(bench) = Bench::start("SQS dead-letter queues that go away").await else { return };
    let dead = bench.queue("dead", &[]).await;
    let url = redriven(&bench, "jobs", "dead").await;
    let source = bench.source(&url).await;
    source.send("job-1", b"{}", None).await.expect("sent");
    let message = receive_one(&source).await;
    bench.client.delete_queue().queue_url(&dead).send().await.expect("deleted");
    let error = source.dead_letter(&message, "no luck").await.expect_err("nowhere to go");
    assert!(matches!(error, SourceError::Refused { action: "sqs:GetQueueUrl", .. }), "{error}");
    assert!(error.to_string().contains(":dead: sqs:GetQueueUrl: there is no such queue"), "{error}");
    source.extend(&message).await.expect("still in flight");
    assert_eq!(bench.counts(&url).await, ("0".into(), "1".into()));
    // Else every job that fails would be reported whenever its message comes back.
    assert!(source.trouble().expect("a reason").contains("there is no such queue"));
    let nothing = source.receive(1).await.expect_err("nothing is received");
    assert!(matches!(nothing, SourceError::Refused { .. }), "{nothing:?}");
    bench.queue("dead", &[]).await;
    source.dead_letter(&message, "no luck").await.expect("moved");
    assert_eq!(source.trouble(), None);
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()));
}

#[tokio::test]
async fn a_smaller_dead_letter_queue_gets_the_body_alone_and_what_it_cannot_take_is_deleted() {
    let Some(bench) = Bench::start("SQS dead-letter queues that take less").await else { return };
    let dead = bench.queue("dead", &[(QueueAttributeName::MaximumMessageSize, "1024")]).await;
    let url = redriven(&bench, "jobs", "dead").await;
    let source = bench.source(&url).await;
    for bytes in [1_000, 1_024, 1_025] {
        let send = bench.client.send_message().queue_url(&url).message_body("x".repeat(bytes));
        send.message_attributes("tier", text(&"gold".repeat(10))).send().await.expect("sent");
        source.dead_letter(&receive_one(&source).await, "no luck").await.expect("settled");
    }
    assert_eq!((source.trouble(), bench.counts(&url).await), (None, ("0".into(), "0".into())));
    let dead = bench.source(&dead).await;
    let mut kept = Vec::new();
    while kept.len() < 2 {
        let message = receive_one(&dead).await;
        assert_eq!(message.record["messageAttributes"], json!({}));
        kept.push(message.body.len());
    }
    kept.sort_unstable();
    assert_eq!(kept, [1_000, 1_024]);
    assert!(nothing_for(&dead, 3).await);
}
