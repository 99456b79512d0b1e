//! A channel for questions, opened again when the broker has closed it over an answer.

use lapin::{Channel, Connection};
use tokio::sync::{Mutex, MutexGuard};

use super::fault::{Fault, within};

/// RabbitMQ closes the channel on which it refuses something. So what may be refused goes through here, one at a time: else
/// the error of one would be taken for the error of another.
#[derive(Default)]
pub(super) struct RpcChannel {
    channel: Mutex<Option<Channel>>,
}

impl RpcChannel {
    /// The RPC channel for one caller; the channel in it is open.
    pub(super) async fn enter(&self, connection: &Connection) -> Result<Permit<'_>, Fault> {
        let mut place = self.channel.lock().await;
        if let Some(channel) = place.take().filter(|channel| channel.status().connected()) {
            return Ok(Permit { place, channel });
        }
        let channel = within(connection.create_channel()).await?;
        Ok(Permit { place, channel })
    }
}

/// One caller's time in a RPC channel. A channel that is not given back with [`Self::leave`], because its answer did not come, is
/// closed, so that no one else gets that answer.
pub(super) struct Permit<'a> {
    place: MutexGuard<'a, Option<Channel>>,
    pub(super) channel: Channel,
}

impl Permit<'_> {
    pub(super) fn leave(mut self) {
        *self.place = Some(self.channel);
    }
}
