//! What settles messages, against queues that fail it: a panic, an ack that is not taken, a spool that somebody deleted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use atelier::host::answer::{Answer, Ended};
use atelier::host::dispatch::Assignment;
use atelier::host::dispatch::acknowledge::{Acknowledger, Retries};
use atelier::host::in_flight::InFlight;
use atelier::host::jobs::Jobs;
use atelier::host::notification_sender::NotificationSender;
use atelier::host::outbox::{Outbox, Services};
use atelier::host::source::{Depth, Message, Shape, Source, SourceError};
use atelier::host::store_health::StoreHealth;
use atelier::job::trace::Trace;
use atelier::metrics::Metrics;
use atelier::metrics::gpu::Gpus;
use atelier::outbound::Outbound;
use atelier::protocol::deferral::DeferReason;
use atelier::store::Store;
use atelier::{notify, outbound, store};
use bytes::Bytes;
use reqwest::Client;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{HostProcess, eventually, job};
use crate::requests::contract;

/// What the queue does when it is to acknowledge.
#[derive(Clone, Copy, PartialEq)]
enum Acks {
    Panic,
    /// It is away for so many times.
    Away(usize),
}

struct Queue {
    acks: Acks,
    asked: AtomicUsize,
    retried: AtomicUsize,
}

#[async_trait]
impl Source for Queue {
    fn name(&self) -> &'static str {
        "queue"
    }

    fn shape(&self) -> Shape {
        Shape::Sqs
    }

    async fn receive(&self, _most: usize) -> Result<Vec<Message>, SourceError> {
        std::future::pending().await
    }

    async fn ack(&self, _message: &Message) -> Result<(), SourceError> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        match self.acks {
            Acks::Panic => panic!("a bug in the queue's client"),
            Acks::Away(times) if asked < times => {
                Err(SourceError::Unavailable { queue: "queue".into(), action: "ack", problem: "it is away".into() })
            }
            Acks::Away(_) => Ok(()),
        }
    }

    async fn retry(&self, _message: &Message, _delay: Duration) -> Result<(), SourceError> {
        self.retried.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn defer(&self, _message: &Message, _delay: Duration, _reason: DeferReason) -> Result<(), SourceError> {
        Ok(())
    }

    async fn release(&self, _message: &Message) -> Result<(), SourceError> {
        Ok(())
    }

    async fn dead_letter(&self, _message: &Message, _reason: &str) -> Result<(), SourceError> {
        Ok(())
    }

    async fn send(&self, _job_id: &str, _body: &[u8], _trace: Option<Trace>) -> Result<(), SourceError> {
        Ok(())
    }

    async fn depth(&self) -> Result<Depth, SourceError> {
        Ok(Depth::default())
    }

    async fn close(&self) {}
}

/// Lets a host settle one message that a function has taken, on a queue that acknowledges like this.
async fn settled(acks: Acks) -> Arc<Queue> {
    let queue = Arc::new(Queue { acks, asked: AtomicUsize::new(0), retried: AtomicUsize::new(0) });
    let cache = tempfile::tempdir().unwrap();
    let settings = store::Settings {
        bucket: "images".into(),
        endpoint_url: Some("http://127.0.0.1:9".into()),
        cache: store::cache::Settings { directory: cache.path().to_owned(), ..store::cache::Settings::default() },
        ..store::Settings::default()
    };
    let outbound = Outbound::new(&outbound::Settings::default()).unwrap();
    let store = Arc::new(Store::connect(&settings, outbound.clone()).await.unwrap());
    let notifier = Arc::new(notify::Notifier::new(&notify::Settings::default(), outbound).unwrap());
    let moment = Duration::from_millis(1);
    let store_health = StoreHealth::new(store.clone(), "");
    let services = Services { sender: NotificationSender { notifier, store }, store_health: store_health.clone() };
    let force_shutdown = CancellationToken::new();
    let acknowledger = Acknowledger {
        jobs: Arc::new(Jobs::default()),
        store_health,
        outbox: Outbox::new(services, &notify::Settings::default(), (moment, moment), force_shutdown.clone()),
        retries: Retries { max_attempts: 3, initial_backoff: moment, max_backoff: moment },
        token: None,
        metrics: Metrics::new(Gpus::none()).unwrap(),
        under_way: TaskTracker::new(),
        force_shutdown,
    };
    let message = Message {
        id: "m-1".into(),
        identity: "m-1".into(),
        receipt: "r-1".into(),
        attempt: 1,
        deferral: None,
        group: None,
        body: job("job-1").to_string().into_bytes(),
        trace: None,
        sent: None,
        received: std::time::Instant::now(),
        ended: None,
        record: json!({ "messageId": "m-1" }),
    };
    let in_flight = InFlight::new(queue.clone(), message, &contract());
    let reply = Bytes::from_static(b"{\"batchItemFailures\": []}");
    let ended = Ended::Answered(Answer::Reply { body: reply, http_stream: false });
    acknowledger.acknowledge(Assignment::Messages(vec![in_flight]), ended);
    acknowledger.under_way.close();
    acknowledger.under_way.wait().await;
    queue
}

#[tokio::test]
async fn a_panic_while_a_message_is_settled_puts_it_back() {
    let queue = settled(Acks::Panic).await;
    assert_eq!((queue.asked.load(Ordering::SeqCst), queue.retried.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn an_ack_that_is_not_taken_is_repeated_until_it_is() {
    let queue = settled(Acks::Away(4)).await;
    assert_eq!((queue.asked.load(Ordering::SeqCst), queue.retried.load(Ordering::SeqCst)), (5, 0));
}

#[tokio::test]
async fn a_spool_that_somebody_deletes_makes_the_host_unready_and_does_not_keep_it_from_ending() {
    let mut host = HostProcess::start(&[], &[]).await;
    host.ready().await;
    host.bucket.hold(Some("/0.png"));
    host.post("/generate", &job("orphan")).await;
    host.bucket.holding().await;
    host.delete_spool();
    host.bucket.hold(None);
    assert_eq!(host.backend.terminal().await.path, "/api/webhooks/inference/complete", "what runs is brought to its end");
    host.wait_for("a message was not settled", 1).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let answer = client.get(format!("http://{}/test", host.address())).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    let reason = answer.json::<Value>().await.unwrap()["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("the directory was deleted while the host runs"), "{reason}");
    let asked = client.post(format!("http://{}/generate", host.address())).header("x-internal-auth", crate::stage::TOKEN);
    let refused: Value = asked.json(&job("late")).send().await.unwrap().json().await.unwrap();
    assert_eq!(refused["error"]["code"], "queue_unavailable", "{refused}");
    host.terminate();
    assert!(host.ended().await.success(), "{}", host.log());
    eventually("the log is written", || !host.logged("drained").is_empty()).await.unwrap();
}
