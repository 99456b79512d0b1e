//! The RabbitMQ source against a real broker.

mod delivery;
mod outage;
mod topology;

use std::time::Duration;

use atelier::host::source::rabbitmq::RabbitMq as Queue;
use atelier::host::source::{Message, Source as _, SourceError};
use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use tokio::time::timeout;

use crate::servers::DEADLINE;

/// The next message; fails when none comes in time.
pub(crate) async fn next(queue: &Queue) -> Message {
    let mut messages = batch(queue, 1).await;
    assert_eq!(messages.len(), 1);
    messages.remove(0)
}

async fn batch(queue: &Queue, most: usize) -> Vec<Message> {
    let messages = async {
        loop {
            // A broker that is away is not the end.
            match queue.receive(most).await {
                Ok(messages) if !messages.is_empty() => return messages,
                Ok(_) | Err(SourceError::Unavailable { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(DEADLINE, messages).await.expect("a message in time")
}

/// True when no message comes for a while. For what must not happen: there is nothing to wait for.
async fn stays_empty(queue: &Queue) -> bool {
    timeout(Duration::from_millis(500), queue.receive(1)).await.is_err()
}

/// Waits until the queue holds so many messages.
async fn holds(queue: &Queue, waiting: u64) {
    let mut seen = None;
    let reached = async {
        while seen != Some(waiting) {
            seen = queue.depth().await.ok().map(|depth| depth.waiting);
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, reached).await.unwrap_or_else(|_| panic!("the queue never held {waiting} messages, last {seen:?}"));
}

async fn publish(channel: &Channel, queue: &str, body: &[u8], properties: BasicProperties) {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm = channel.basic_publish("".into(), queue.into(), options, body, properties).await.unwrap();
    assert_eq!(confirm.await.unwrap(), lapin::Confirmation::Ack(None), "{queue} takes the message");
}

async fn make_classic(channel: &Channel, queue: &str, arguments: FieldTable) {
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
}

/// The next message of a queue, as another client sees it.
async fn peek(channel: &Channel, queue: &str) -> Delivery {
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await.unwrap();
    timeout(DEADLINE, consumer.next()).await.expect("a message in time").expect("a queue").expect("a delivery")
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a AMQPValue> {
    delivery.properties.headers().as_ref()?.inner().get(name)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
