//! One connection with its channel and its messages, from login to its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::DeliveryTag;
use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::broker::Broker;
use super::deliveries::{Deliveries, InFlight};
use super::fault::{Fault, within};
use super::publish::Destination;
use super::publisher::Publisher;
use super::rpc_channel::RpcChannel;
use super::{connection, topology};

/// How soon the end of a connection is noticed that nothing else reports.
const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Session {
    /// Counts connections. A delivery tag of one means nothing to the next.
    pub(super) generation: u64,
    pub(super) broker: Arc<Broker>,
    connection: Connection,
    /// Deliveries and their acknowledgements; the broker ties one to the other by channel.
    pub(super) consuming: Channel,
    asking: RpcChannel,
    publisher: Publisher,
    deliveries: Mutex<Deliveries>,
    /// Something waits on the set of deliveries.
    arrived: Notify,
    /// Someone wants messages.
    pub(super) wanted: Notify,
    /// Something failed: is the connection still there?
    pub(super) doubted: Notify,
    /// Nothing waits here any more, and nothing comes.
    pub(super) emptied: CancellationToken,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy)]
pub(super) enum Disposition {
    Done,
    /// Back to the queue, as if it had not been here: since 4.3 RabbitMQ counts no delivery for a nack.
    Untried,
    /// Back to the queue, counted: that is what a reject means since 4.3.
    Failed,
    /// To the queue's own dead-letter exchange.
    Dead,
}

impl Session {
    /// Connects, and makes or finds the queues.
    pub(super) async fn open(broker: &Arc<Broker>, generation: u64) -> Result<Self, Fault> {
        let connection = connection::open(&broker.settings, broker.authorities.as_deref()).await?;
        let consuming = within(connection.create_channel()).await?;
        let session = Self {
            generation,
            broker: Arc::clone(broker),
            connection,
            consuming,
            asking: RpcChannel::default(),
            publisher: Publisher::default(),
            deliveries: Mutex::default(),
            arrived: Notify::new(),
            wanted: Notify::new(),
            doubted: Notify::new(),
            emptied: CancellationToken::new(),
        };
        session.asking.ask(&session.connection, async |channel| topology::establish(channel, &broker.settings).await).await?;
        Ok(session)
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.status().connected() && self.consuming.status().connected()
    }

    /// A panic under the lock leaves the set of deliveries as it was or short of a message, which the broker still has.
    pub(super) fn deliveries(&self) -> MutexGuard<'_, Deliveries> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, in_flight: InFlight) {
        self.deliveries().put(in_flight);
        self.arrived.notify_waiters();
    }

    /// Waits for messages; one that arrives after the caller is gone stays on the set of deliveries.
    pub(super) async fn take(&self, most: usize) -> Vec<Arc<InFlight>> {
        self.wanted.notify_one();
        loop {
            // Listens before it looks, so that nothing arrives in between.
            let arrived = self.arrived.notified();
            let taken = self.deliveries().take(most);
            if !taken.is_empty() {
                return taken;
            }
            arrived.await;
        }
    }

    /// Sends the broker what becomes of the message. The error says why the message is not ours any more.
    pub(super) async fn acknowledge(&self, in_flight: &InFlight, disposition: Disposition) -> Result<(), String> {
        // Before the broker hears of it: the message may be here again before we hear of that.
        match disposition {
            Disposition::Done | Disposition::Dead => self.broker.handed_back.forget(&in_flight.delivery),
            Disposition::Untried => self.broker.handed_back.note(&in_flight.delivery),
            Disposition::Failed => {}
        }
        let acker = &in_flight.delivery.acker;
        let sent = within(async {
            let sent = match disposition {
                Disposition::Done => acker.ack(BasicAckOptions::default()).await?,
                Disposition::Untried => acker.nack(BasicNackOptions { requeue: true, multiple: false }).await?,
                Disposition::Failed => acker.reject(BasicRejectOptions { requeue: true }).await?,
                Disposition::Dead => acker.reject(BasicRejectOptions { requeue: false }).await?,
            };
            // The broker answers no acknowledgement. But it answers this, which changes nothing, after it.
            self.limit().await?;
            Ok(sent)
        });
        let sent = self.while_it_lives(sent).await;
        self.deliveries().forget(in_flight.delivery.delivery_tag);
        match sent {
            Ok(true) => Ok(()),
            Ok(false) => Err("it was settled before, or its channel is closed".into()),
            Err(fault) => {
                self.doubted.notify_one();
                Err(fault.problem)
            }
        }
    }

    /// How many messages may be here at once, unacknowledged; for subscriptions that begin later.
    pub(super) async fn limit(&self) -> lapin::Result<()> {
        self.consuming.basic_qos(self.broker.settings.prefetch, BasicQosOptions::default()).await
    }

    pub(super) fn handed_out(&self, tag: DeliveryTag) -> Option<Arc<InFlight>> {
        self.deliveries().handed_out(tag)
    }

    /// Returns when the broker has the message for good.
    pub(super) async fn publish(&self, to: &Destination, body: &[u8], properties: BasicProperties) -> Result<(), Fault> {
        self.publisher.publish(&self.broker, to, body, properties).await.inspect_err(|_| self.doubted.notify_one())
    }

    /// The queue that gives messages back after `delay`.
    pub(super) async fn retry_queue(&self, delay: Duration) -> Result<String, Fault> {
        let queue = &self.broker.settings.queue;
        let asked = self.asking.ask(&self.connection, async |channel| topology::retry_queue(channel, queue, delay).await);
        self.while_it_lives(asked).await
    }

    /// Messages that no handler has: in the queue, and here.
    pub(super) async fn depth(&self) -> Result<u64, Fault> {
        let queue = &self.broker.settings.queue;
        let asked = self.asking.ask(&self.connection, async |channel| topology::depth(channel, queue).await);
        Ok(self.while_it_lives(asked).await? + self.deliveries().waiting() as u64)
    }

    /// lapin never answers what it is asked in the moment in which a connection ends, and it reports that end only to those who
    /// ask later.
    pub(super) async fn while_it_lives<T>(&self, asked: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        tokio::select! {
            biased;
            answer = asked => answer,
            fault = self.end() => Err(fault),
        }
    }

    /// Resolves soon after the connection is gone.
    pub(super) async fn end(&self) -> Fault {
        while self.is_alive() {
            sleep(LOOK).await;
        }
        Fault::unavailable("the connection is gone")
    }
}
