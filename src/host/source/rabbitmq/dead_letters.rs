//! The queue behind the dead-letter exchange, gone through as any consumer would.

use std::collections::HashSet;

use async_trait::async_trait;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{BasicAckOptions, BasicGetOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection};

use super::fault::{Fault, within};
use super::publish::{Destination, Note, again, publish, unchanged, with_end};
use super::settings::Settings;
use super::{connection, record, topology};
use crate::host::source::dead_letters::{DeadLetter, DeadLetters, Decision, Operator};
use crate::host::source::{ConnectError, SourceError};

/// Delivered so often, a letter is put back as a copy, whose deliveries the broker counts anew. At its limit for a quorum queue (20 since
/// 4.0, or what somebody has set) it would drop the letter, and each look is a delivery.
const MAX_DELIVERIES: u32 = 1;
/// AMQP's `reply-success`.
const SUCCESS: u16 = 200;

/// The messages of a queue of RabbitMQ that failed for good.
pub struct RabbitMqDeadLetters {
    connection: Connection,
    /// Of jobs.
    queue: String,
    dead: String,
    place: String,
}

impl RabbitMqDeadLetters {
    /// `dead`: the queue that has them; none: the one that the host makes.
    ///
    /// # Errors
    /// Names the setting that is wrong, or says why the broker cannot be used.
    pub async fn connect(settings: &Settings, dead: Option<&str>) -> Result<Self, ConnectError> {
        settings.check()?;
        let authorities = settings.authorities()?;
        let dead = dead.map_or_else(|| topology::dead_letter_queue(&settings.queue), str::to_owned);
        let place = format!("{dead} at {}:{}", settings.broker().unwrap_or_default(), settings.port);
        let opened = connection::open(settings, authorities.as_deref()).await;
        let connection = opened.map_err(|fault| fault.at(&place, "connect"))?;
        Ok(Self { connection, queue: settings.queue.clone(), dead, place })
    }

    async fn walk(&self, channel: &Channel, operator: &mut dyn Operator) -> Result<(), Fault> {
        within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let dead = self.dead.as_str();
        let passive = QueueDeclareOptions::default().passive();
        let found = within(channel.queue_declare(dead.into(), passive, FieldTable::default())).await?;
        let mut left = found.message_count();
        let mut seen = HashSet::new();
        let mut worn = Vec::new();
        while let Some(received) = within(channel.basic_get(dead.into(), BasicGetOptions::default())).await? {
            let BasicGetMessage { delivery, .. } = received;
            let letter = dead_letter(&delivery);
            // The broker's count may be of a moment ago. Beyond it a letter that was met before has died again.
            if !seen.insert(letter.id.clone()) && left == 0 {
                break;
            }
            left = left.saturating_sub(1);
            match operator.decide(&letter) {
                Decision::Keep => {
                    if record::broker_count(&delivery) >= MAX_DELIVERIES {
                        worn.push(delivery);
                    }
                    continue;
                }
                Decision::SendAgain => publish_again(channel, &self.queue, &delivery, sent_again(&delivery.properties)).await?,
                Decision::Remove => within(delivery.acker.ack(BasicAckOptions::default())).await.map(drop)?,
            }
            operator.done(&letter);
        }
        // At last: a copy goes to the end of the queue, and would be met again.
        for delivery in worn {
            publish_again(channel, dead, &delivery, unchanged(&delivery.properties)).await?;
        }
        Ok(())
    }
}

/// The message is in `queue` first, and gone here then.
async fn publish_again(channel: &Channel, queue: &str, delivery: &Delivery, properties: BasicProperties) -> Result<(), Fault> {
    publish(channel, &Destination::queue(queue), &delivery.data, properties).await?;
    within(delivery.acker.ack(BasicAckOptions::default())).await.map(drop)
}

#[async_trait]
impl DeadLetters for RabbitMqDeadLetters {
    fn source(&self) -> &'static str {
        "rabbitmq"
    }

    fn place(&self) -> &str {
        &self.place
    }

    async fn go_through(&self, operator: &mut dyn Operator) -> Result<(), SourceError> {
        let walked = async {
            let channel = within(self.connection.create_channel()).await?;
            let walked = self.walk(&channel, operator).await;
            // All that was not settled is in its place again.
            if channel.status().connected() {
                within(channel.close(SUCCESS, "".into())).await?;
            }
            walked
        };
        walked.await.map_err(|fault: Fault| fault.at(&self.place, "go through"))
    }
}

/// Of a letter that goes back to its queue: with all its attempts, and without why it died. A job of which only its caller does not know
/// is still no more than that.
fn sent_again(properties: &BasicProperties) -> BasicProperties {
    with_end(again(properties, 0, Note::Retry), record::ended(properties).as_ref())
}

fn dead_letter(delivery: &Delivery) -> DeadLetter {
    let reason = record::reason(&delivery.properties);
    let sent = record::sent(&delivery.properties);
    DeadLetter { reason, sent, ..DeadLetter::new(record::identity(delivery), delivery.data.clone()) }
}
