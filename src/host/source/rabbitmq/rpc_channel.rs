//! A channel for questions, opened again when the broker has closed it over an answer.

use lapin::{Channel, Connection};

use super::fault::{Fault, within};
use super::turns::Turns;

/// RabbitMQ closes the channel on which it refuses something. So what may be refused goes through here, one at a time: else
/// the error of one would be taken for the error of another.
#[derive(Default)]
pub(super) struct RpcChannel {
    channel: Turns<Channel>,
}

impl RpcChannel {
    /// Asks on an open channel. One whose answer did not come is closed, so that no one else gets that answer.
    pub(super) async fn ask<A>(
        &self,
        connection: &Connection,
        question: impl AsyncFnOnce(&Channel) -> Result<A, Fault>,
    ) -> Result<A, Fault> {
        self.channel
            .take(async |place| {
                let channel = match place.take().filter(|channel| channel.status().connected()) {
                    Some(channel) => channel,
                    None => within(connection.create_channel()).await?,
                };
                let answer = question(&channel).await?;
                *place = Some(channel);
                Ok(answer)
            })
            .await
    }
}
