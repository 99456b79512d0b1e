//! The SQS source against moto's SQS: whose a message is, when it comes back, and where failed ones go.

mod dead_letters;
mod deferred;
mod polls;
mod refusals;
mod whole;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use atelier::events::Event;
use atelier::host::source::sqs::{Settings, Sqs};
use atelier::host::source::{Depth, Message, Shape, Source, SourceError};
use atelier::job::trace::Trace;
use atelier::setting::Secret;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName};
use serde_json::json;
use tokio::time::{interval, timeout};

use crate::events::parse;
use crate::servers::moto::Moto;
use crate::servers::{DEADLINE, python_or_skip};

/// moto with its SQS, and a client of its own next to the source.
pub(crate) struct Bench {
    moto: Moto,
    client: Client,
}

impl Bench {
    pub(crate) async fn start(what: &str) -> Option<Self> {
        let moto = Moto::start(&python_or_skip(what)?).await;
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{}", moto.address))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .build();
        Some(Self { moto, client: Client::from_conf(config) })
    }

    /// The new queue's URL.
    pub(crate) async fn queue(&self, name: &str, attributes: &[(QueueAttributeName, &str)]) -> String {
        let mut all = HashMap::from([(QueueAttributeName::MaximumMessageSize, (1 << 20).to_string())]);
        if name.contains(".fifo") {
            all.insert(QueueAttributeName::FifoQueue, "true".into());
        }
        all.extend(attributes.iter().map(|(name, value)| (name.clone(), (*value).to_owned())));
        let made = self.client.create_queue().queue_name(name).set_attributes(Some(all)).send().await.expect("a new queue");
        made.queue_url.expect("its URL")
    }

    /// Where another client finds it.
    pub(crate) fn server(&self) -> String {
        format!("http://{}", self.moto.address)
    }

    /// The body of a queue's next message.
    pub(crate) async fn body(&self, queue_url: &str) -> String {
        let received = self.client.receive_message().queue_url(queue_url).wait_time_seconds(5).send().await.expect("an answer");
        let message = received.messages.into_iter().flatten().next().expect("a message");
        message.body.expect("its body")
    }

    pub(crate) async fn send(&self, queue_url: &str, body: &serde_json::Value) {
        self.client.send_message().queue_url(queue_url).message_body(body.to_string()).send().await.expect("sent");
    }

    /// Waits until nothing waits and no one has anything in flight.
    pub(crate) async fn emptied(&self, queue_url: &str) {
        let nothing = ("0".to_owned(), "0".to_owned());
        let empty = async {
            while self.counts(queue_url).await != nothing {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(crate::host::WAIT_LIMIT, empty).await.expect("the queue is emptied in time");
    }

    pub(crate) async fn source(&self, queue_url: &str) -> Sqs {
        Sqs::connect(&settings(queue_url)).await.expect("the queue is there")
    }

    /// `ApproximateNumberOfMessages` and what is in someone's hands.
    async fn counts(&self, queue_url: &str) -> (String, String) {
        let names =
            [QueueAttributeName::ApproximateNumberOfMessages, QueueAttributeName::ApproximateNumberOfMessagesNotVisible];
        let get = self.client.get_queue_attributes().queue_url(queue_url).set_attribute_names(Some(names.to_vec()));
        let found = get.send().await.expect("an answer").attributes.expect("attributes");
        (found[&names[0]].clone(), found[&names[1]].clone())
    }
}

/// With short times, but a heartbeat that a loaded machine does not miss.
fn settings(queue_url: &str) -> Settings {
    Settings {
        queue_url: Some(queue_url.into()),
        access_key_id: Some("test".into()),
        secret_access_key: Some(Secret::new("test")),
        wait_seconds: 2,
        visibility_seconds: 10,
        ..Settings::default()
    }
}

/// A queue whose messages go to the queue `dead` after ten deliveries.
pub(crate) async fn redriven(bench: &Bench, name: &str, dead: &str) -> String {
    let arn = format!("arn:aws:sqs:us-east-1:123456789012:{dead}");
    let policy = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": 10 }).to_string();
    bench.queue(name, &[(QueueAttributeName::RedrivePolicy, &policy)]).await
}

pub(crate) async fn receive_one(source: &Sqs) -> Message {
    let messages = timeout(DEADLINE, source.receive(1)).await.expect("a message in time").expect("the queue answers");
    let [message] = <[Message; 1]>::try_from(messages).expect("one message");
    message
}

/// True when no one gets a message for so long.
async fn nothing_for(source: &Sqs, seconds: u64) -> bool {
    timeout(Duration::from_secs(seconds), source.receive(1)).await.is_err()
}

#[tokio::test]
async fn a_job_goes_in_comes_out_and_is_settled() {
    let Some(bench) = Bench::start("the way of a message through SQS").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    assert_eq!((source.name(), source.shape(), source.heartbeat()), ("sqs", Shape::Sqs, Some(Duration::from_secs(5))));

    let trace = Trace::from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    source.send("job-1", br#"{"job_id": "job-1"}"#, trace).await.expect("sent");
    assert_eq!(source.depth().await.expect("counted"), Depth { waiting: 1, oldest: None });
    let message = receive_one(&source).await;
    assert_eq!((message.body.as_slice(), message.attempt), (br#"{"job_id": "job-1"}"#.as_slice(), 1));
    assert!(message.group.is_none() && message.sent.is_some());
    assert!(message.trace.is_some() && message.trace == trace);
    assert_eq!(message.record["eventSourceARN"], "arn:aws:sqs:us-east-1:123456789012:jobs");
    let event = parse(&json!({ "Records": [message.record] })).expect("an event that the handler knows");
    let Event::Sqs(batch) = event else { panic!("not taken for SQS: {event:?}") };
    assert_eq!((batch.deliveries[0].message_id.as_str(), &batch.deliveries[0].body), (message.id.as_str(), &message.body));
    assert_eq!(batch.deliveries[0].trace, trace);

    assert_eq!(source.depth().await.expect("counted").waiting, 0, "what is in flight does not wait");
    source.ack(&message).await.expect("settled");
    assert_eq!(bench.counts(&url).await, ("0".into(), "0".into()));
    let error = source.extend(&message).await.expect_err("it is gone");
    assert!(matches!(&error, SourceError::Lost { action: "sqs:ChangeMessageVisibility", .. }), "{error}");
}

#[tokio::test]
async fn a_message_of_a_mebibyte_arrives_whole_and_a_larger_one_is_refused() {
    let Some(bench) = Bench::start("large messages in SQS").await else { return };
    let source = bench.source(&bench.queue("large", &[]).await).await;
    let body = "é".repeat(1 << 19);
    source.send("job-1", body.as_bytes(), None).await.expect("exactly 1 MiB");
    assert_eq!(receive_one(&source).await.body, body.as_bytes());
    let error = source.send("job-2", format!("{body}.").as_bytes(), None).await.expect_err("too large");
    assert!(matches!(error, SourceError::TooLarge { .. }));
    assert!(error.to_string().contains("1048577 bytes, and its queue takes 1048576 at most"), "{error}");

    let small = bench.source(&bench.queue("small", &[(QueueAttributeName::MaximumMessageSize, "1024")]).await).await;
    let error = small.send("job-3", &[b'x'; 1_025], None).await.expect_err("too large for this queue");
    assert!(error.to_string().contains("takes 1024 at most (MaximumMessageSize"), "{error}");
    let error = small.send("job-4", &[0xff], None).await.expect_err("not text");
    assert!(error.to_string().contains("not text in UTF-8"), "{error}");
}

#[tokio::test]
async fn the_heartbeat_keeps_a_message_and_without_it_the_message_comes_back() {
    let Some(bench) = Bench::start("SQS visibility").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = bench.source(&url).await;
    let other = bench.source(&url).await;
    source.send("job-1", b"{}", None).await.expect("sent");
    let mut message = receive_one(&source).await;
    let mut beat = interval(source.heartbeat().expect("a heartbeat"));
    let beating = async {
        loop {
            beat.tick().await;
            source.extend(&message).await.expect("still ours");
        }
    };
    tokio::select! {
        () = beating => unreachable!("the heart beats on"),
        nothing = nothing_for(&other, 13) => assert!(nothing, "taken away beyond the visibility timeout"),
    }
    let again = receive_one(&other).await;
    assert_eq!((again.id.as_str(), again.attempt), (message.id.as_str(), 2));

    message.received = message.received.checked_sub(Duration::from_hours(12)).expect("a clock that knows yesterday");
    let error = source.extend(&message).await.expect_err("SQS's 12 hours are over");
    assert!(matches!(error, SourceError::Lost { .. }));
    assert!(error.to_string().contains("for 12 hours at most); the queue delivers it again"), "{error}");
}

#[tokio::test]
async fn a_retry_comes_back_after_its_delay_and_a_release_at_once() {
    let Some(bench) = Bench::start("SQS retries").await else { return };
    let url = bench.queue("jobs", &[]).await;
    let source = Sqs::connect(&Settings { visibility_seconds: 600, ..settings(&url) }).await.expect("the queue is there");
    source.send("job-1", b"{}", None).await.expect("sent");

    let requeue = Instant::now();
    source.retry(&receive_one(&source).await, Duration::from_millis(2_500)).await.expect("put back");
    let again = receive_one(&source).await;
    assert!(requeue.elapsed() >= Duration::from_secs(3), "a delay is never cut short: {:?}", requeue.elapsed());
    assert_eq!(again.attempt, 2);

    source.release(&again).await.expect("put back");
    assert_eq!(receive_one(&source).await.attempt, 3, "SQS counts what was put back untried as well");
}

#[tokio::test]
async fn a_fifo_group_is_worked_off_one_by_one_in_order() {
    let Some(bench) = Bench::start("SQS FIFO queues").await else { return };
    let url = bench.queue("jobs.fifo", &[]).await;
    let source = bench.source(&url).await;
    let other = bench.source(&url).await;
    for n in 1..=3 {
        let send = bench.client.send_message().queue_url(&url).message_group_id("user-7");
        send.message_deduplication_id(n.to_string()).message_body(format!("{n}")).send().await.expect("sent");
    }
    source.send("job-9", b"9", None).await.expect("a job of its own group");
    source.send("job-9", b"9 again", None).await.expect("the job once more");

    let first = source.receive(10).await.expect("the queue answers");
    assert_eq!(first.iter().map(|message| message.body.as_slice()).collect::<Vec<_>>(), [b"1"], "one of a group");
    assert_eq!(first[0].group.as_deref(), Some("user-7"));
    let meanwhile = receive_one(&other).await;
    assert_eq!((meanwhile.body.as_slice(), meanwhile.group.as_deref()), (b"9".as_slice(), Some("job-9")));

    source.retry(&first[0], Duration::from_secs(1)).await.expect("put back");
    for expected in ["1", "2", "3"] {
        let message = receive_one(&source).await;
        assert_eq!(message.body, expected.as_bytes());
        source.ack(&message).await.expect("settled");
    }
    other.ack(&meanwhile).await.expect("settled");
    assert_eq!(receive_one(&other).await.body, b"9 again", "a job that is sent again is no double");
}
