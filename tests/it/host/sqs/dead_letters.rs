//! Where a message goes that failed for good.

use super::*;

async fn redriven(bench: &Bench, name: &str, dead: &str) -> String {
    let arn = format!("arn:aws:sqs:us-east-1:123456789012:{dead}");
    let policy = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": 10 }).to_string();
    bench.queue(name, &[(QueueAttributeName::RedrivePolicy, &policy)]).await
}

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
}
