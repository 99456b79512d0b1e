//! The queues around the queue of jobs: where failed jobs are kept, and where jobs wait for their next attempt.
//!
//! - `{queue}`: a quorum queue that dead-letters into the exchange `{queue}.dlx`.
//! - `{queue}.dead`: a quorum queue bound to that exchange.
//! - `{queue}.retry.{ms}`: a quorum queue that gives its messages back to `{queue}` after so many milliseconds. One for each
//!   step of a ladder, because RabbitMQ looks at the head alone: of messages with times of their own in one queue, a short
//!   one would wait behind a long one. They have no `x-expires`: a queue that expires takes its messages with it, and the
//!   ladder is short.
//!
//! All of them dead-letter at least once, which RabbitMQ does only together with `reject-publish`.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind};

use super::fault::{Fault, within};
use super::settings::Settings;

/// What a delay is rounded up to; longer ones get the last.
const LADDER_S: [u64; 8] = [1, 2, 5, 15, 60, 300, 900, 3600];

/// Deliveries of one copy of a message after which the broker itself dead-letters it. The host's own `max_attempts` is what
/// ends a job, and notifies its caller; this is only the last resort for a message that ends every host that takes it. So it
/// is high: before 4.3 RabbitMQ counts messages that were handed back untouched as well, and its own default is 20.
const DELIVERY_LIMIT: i64 = 1000;

pub(super) fn dead_letter_exchange(queue: &str) -> String {
    format!("{queue}.dlx")
}

pub(super) fn dead_letter_queue(queue: &str) -> String {
    format!("{queue}.dead")
}

/// Makes the queues, or looks whether the queue is there.
pub(super) async fn establish(channel: &Channel, settings: &Settings) -> Result<(), Fault> {
    if settings.declare {
        declare(channel, &settings.queue).await.map_err(|fault| {
            let problem = format!(
                "{}; a queue or exchange of that name exists with other arguments or the user may not make it: delete it, or \
                 use the queue as it is with `sources.rabbitmq.declare: false`",
                fault.problem
            );
            Fault { problem, ..fault }
        })
    } else {
        depth(channel, &settings.queue).await?;
        match compare(channel, &settings.queue).await {
            Err(Fault { problem, .. }) if let Some(lost) = lost_when(&problem) => {
                Err(Fault::refused(format!("it loses jobs: {lost}")))
            }
            // Any other difference is its owner's business.
            Ok(()) | Err(Fault { refused: true, .. }) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

/// When a queue loses jobs that it had confirmed, by what the broker says differs from a queue of ours.
pub(super) fn lost_when(difference: &str) -> Option<&'static str> {
    const LOSES: [(&str, &str); 3] = [
        ("inequivalent arg 'durable'", "it is not durable, and gone when the broker restarts"),
        ("inequivalent arg 'auto_delete'", "it is deleted with its last consumer (auto-delete)"),
        ("inequivalent arg 'exclusive'", "it is exclusive, and deleted with the connection that made it"),
    ];
    const STREAM: &str = "it is a stream, which does not deliver again what a host that died had";
    let is_stream = difference.contains("'x-queue-type'")
        && difference.split_once("current is").is_some_and(|(_, current)| current.contains("stream"));
    let found = LOSES.into_iter().find(|(problem, _)| difference.contains(problem)).map(|(_, lost)| lost);
    found.or(is_stream.then_some(STREAM))
}

/// Messages in the queue that no one has.
pub(super) async fn depth(channel: &Channel, queue: &str) -> Result<u64, Fault> {
    let passive = QueueDeclareOptions::default().passive();
    match within(channel.queue_declare(queue.into(), passive, FieldTable::default())).await {
        Ok(found) => Ok(found.message_count().into()),
        Err(fault) if fault.refused && fault.problem.starts_with("NOT_FOUND") => Err(Fault::refused(format!(
            "there is no queue {queue:?}; make it, or have it made with `sources.rabbitmq.declare: true`"
        ))),
        Err(fault) => Err(fault),
    }
}

/// What the broker says of a queue that is there, when it is asked for one as we make it: nothing where both are the same. It
/// closes the channel over a difference.
pub(super) async fn compare(channel: &Channel, queue: &str) -> Result<(), Fault> {
    quorum(channel, queue, &own_arguments(queue)).await
}

/// The same with a quorum queue that has no arguments next to its type.
pub(super) async fn compare_type(channel: &Channel, queue: &str) -> Result<(), Fault> {
    quorum(channel, queue, &[]).await
}

fn own_arguments(queue: &str) -> Vec<(&'static str, AMQPValue)> {
    let arguments = [("x-delivery-limit", DELIVERY_LIMIT.into())];
    [&arguments[..], &dead_letters_to(&dead_letter_exchange(queue), queue)].concat()
}

/// The queue first: where it is someone else's, nothing is made.
async fn declare(channel: &Channel, queue: &str) -> Result<(), Fault> {
    let exchange = dead_letter_exchange(queue);
    let dead = dead_letter_queue(queue);
    quorum(channel, queue, &own_arguments(queue)).await?;
    let exchange = ShortString::from(exchange);
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    within(channel.exchange_declare(exchange.clone(), ExchangeKind::Fanout, durable, FieldTable::default())).await?;
    quorum(channel, &dead, &[]).await?;
    let bind = QueueBindOptions::default();
    within(channel.queue_bind(dead.into(), exchange, "".into(), bind, FieldTable::default())).await
}

/// Makes sure of the queue that gives messages back to `queue` after `delay` or a little more; its name.
pub(super) async fn retry_queue(channel: &Channel, queue: &str, delay: Duration) -> Result<String, Fault> {
    let delay_ms = step(delay).as_millis();
    let name = format!("{queue}.retry.{delay_ms}");
    let arguments = [("x-message-ttl", AMQPValue::from(delay_ms as i64))];
    quorum(channel, &name, &[&arguments[..], &dead_letters_to("", queue)].concat()).await?;
    Ok(name)
}

fn step(delay: Duration) -> Duration {
    let steps = LADDER_S.map(Duration::from_secs);
    steps.into_iter().find(|step| *step >= delay).unwrap_or(steps[steps.len() - 1])
}

fn dead_letters_to(exchange: &str, routing_key: &str) -> [(&'static str, AMQPValue); 4] {
    [
        ("x-dead-letter-exchange", text(exchange)),
        ("x-dead-letter-routing-key", text(routing_key)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]
}

async fn quorum(channel: &Channel, name: &str, arguments: &[(&'static str, AMQPValue)]) -> Result<(), Fault> {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text("quorum"));
    for (key, value) in arguments {
        table.insert((*key).into(), value.clone());
    }
    within(channel.queue_declare(name.into(), QueueDeclareOptions::durable(), table)).await.map(drop)
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_rounded_up_to_its_step() {
        for (delay_ms, step_s) in [(0, 1), (1_000, 1), (1_001, 2), (4_000, 5), (60_000, 60), (61_000, 300), (9_999_999, 3600)] {
            assert_eq!(step(Duration::from_millis(delay_ms)), Duration::from_secs(step_s), "{delay_ms} ms");
        }
    }
}
