//! The connection that messages go out by. A broker that is short of memory or disk stops listening to connections that
//! publish; by another one it still hears what is settled.

use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{BasicProperties, Channel, Connection};
use tokio::time::sleep;

use super::broker::Broker;
use super::connection;
use super::fault::{Fault, within};
use super::publish::{Destination, publish};
use super::turns::Turns;

/// How soon it is noticed that the broker has stopped listening.
const LOOK: Duration = Duration::from_millis(250);

/// Opened for the first message. One message at a time, since RabbitMQ closes the channel on which it refuses one, and with it
/// what else is under way.
#[derive(Default)]
pub(super) struct Publisher {
    open: Turns<(Connection, Channel)>,
}

impl Publisher {
    /// Returns when the broker has the message for good.
    pub(super) async fn publish(
        &self,
        broker: &Broker,
        to: &Destination,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), Fault> {
        self.open
            .take(async |place| {
                let (connection, channel) = match place.take() {
                    Some((connection, channel)) if connection.status().connected() => {
                        let channel = if channel.status().connected() { channel } else { confirming(&connection).await? };
                        (connection, channel)
                    }
                    _ => {
                        let connection = connection::open(&broker.settings, broker.authorities.as_deref()).await?;
                        let channel = confirming(&connection).await?;
                        (connection, channel)
                    }
                };
                let (connection, channel) = place.insert((connection, channel));
                tokio::select! {
                    biased;
                    fault = trouble(connection) => Err(fault),
                    published = publish(channel, to, body, properties) => published,
                }
            })
            .await
    }
}

async fn confirming(connection: &Connection) -> Result<Channel, Fault> {
    let channel = within(connection.create_channel()).await?;
    within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Resolves when no confirmation is to be expected.
async fn trouble(connection: &Connection) -> Fault {
    loop {
        if !connection.status().connected() {
            return Fault::unavailable("the connection is gone");
        }
        if connection.status().blocked() {
            return Fault::unavailable("the broker takes no messages for now: it is short of memory or disk");
        }
        sleep(LOOK).await;
    }
}
