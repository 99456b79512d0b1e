//! RabbitMQ: jobs out of one queue, acknowledged by hand, over a connection that is made again whenever it breaks.
//!
//! - The subscription begins with the first [`Source::receive`], when a handler is free; then up to `prefetch` messages are
//!   here at once, so that the next one is at hand. What waits too long is handed back before the broker takes it.
//! - A message belongs to its connection. When that breaks, the broker delivers everything again that was not acknowledged;
//!   settling it by the old connection is [`SourceError::Lost`], and a job that is done by then is replayed for free.
//! - To try again later means: publish a copy to a queue that gives it back after a while, with the attempts so far in a
//!   header, wait until the broker has it, then acknowledge. A crash in between makes two of it, never none.
//! - The queue must be durable; a quorum queue is the one that counts. Its delivery limit must be higher than the host's
//!   `max_attempts`, else the broker dead-letters a message before its caller is notified.

mod broker;
mod connection;
mod connection_manager;
pub mod dead_letters;
mod deliveries;
mod fault;
mod filter;
mod frame;
mod handed_back;
pub mod inspect;
mod publish;
mod publisher;
mod record;
mod rpc_channel;
mod serve;
mod session;
pub mod settings;
mod topology;
mod turns;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use self::broker::Broker;
use self::connection_manager::{ConnectionManager, State};
use self::deliveries::InFlight;
use self::fault::Fault;
use self::handed_back::HandedBack;
use self::publish::{Destination, Note};
use self::session::{Disposition, Session};
use self::settings::Settings;
use super::{Depth, Message, Shape, Source, SourceError};
use crate::job::trace::Trace;
use crate::protocol::deferral::{DeferReason, Deferral};
use crate::setting::SettingError;

/// How long a message waits here, at most, that the broker takes no copy of: well within any `consumer_timeout`.
const REJECTION_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The queue; see the module.
pub struct RabbitMq {
    connection_manager: ConnectionManager,
    settings: Settings,
    /// The queue's name in messages.
    label: String,
}

impl RabbitMq {
    /// Begins to connect, and goes on whether or not the broker is there; [`Source::depth`] says whether it is. Must be
    /// called inside a tokio runtime.
    ///
    /// # Errors
    /// Names the setting that is missing or wrong.
    pub fn start(settings: &Settings) -> Result<Self, SettingError> {
        settings.check()?;
        let authorities = settings.authorities()?;
        let settings = settings.clone();
        let label = format!("{} at {}:{}", settings.queue, settings.broker().unwrap_or_default(), settings.port);
        let broker = Broker { settings: settings.clone(), authorities, handed_back: HandedBack::default() };
        Ok(Self { connection_manager: ConnectionManager::start(broker), settings, label })
    }

    fn receipt(&self, message: &Message, action: &'static str) -> Result<(Arc<Session>, Arc<InFlight>), SourceError> {
        let parts = message.receipt.split_once(':');
        let parts = parts.and_then(|(generation, tag)| Some((generation.parse().ok()?, tag.parse().ok()?)));
        let (generation, tag) = parts.ok_or_else(|| self.lost(action, "its receipt is not one of ours"))?;
        let session = self.connection_manager.session_of(generation);
        let session = session.ok_or_else(|| self.lost(action, "the connection that it came by is gone"))?;
        let in_flight = session.handed_out(tag).ok_or_else(|| self.lost(action, "it was settled before"))?;
        Ok((session, in_flight))
    }

    fn lost(&self, action: &'static str, problem: impl Into<String>) -> SourceError {
        SourceError::Lost { queue: self.label.clone(), action, problem: problem.into() }
    }

    fn at(&self, action: &'static str) -> impl FnOnce(Fault) -> SourceError {
        move |fault| fault.at(&self.label, action)
    }

    async fn acknowledge(&self, message: &Message, disposition: Disposition, action: &'static str) -> Result<(), SourceError> {
        let (session, in_flight) = self.receipt(message, action)?;
        session.acknowledge(&in_flight, disposition).await.map_err(|problem| self.lost(action, problem))
    }

    /// Publishes the message again and acknowledges the original.
    async fn move_to(
        &self,
        session: &Session,
        (message, in_flight): (&Message, &InFlight),
        to: &Destination,
        note: Note<'_>,
    ) -> Result<(), Fault> {
        let properties = publish::again(&in_flight.delivery.properties, in_flight.attempt, note);
        let properties = publish::with_end(properties, message.ended.as_ref());
        session.publish(to, &in_flight.delivery.data, properties).await
    }

    /// Where a message waits for its next attempt. Without permission to make that queue it waits nowhere, and is tried
    /// again as soon as its turn comes.
    async fn waiting_room(&self, session: &Session, delay: Duration) -> Result<Destination, Fault> {
        if delay.is_zero() {
            return Ok(Destination::queue(&self.settings.queue));
        }
        match session.retry_queue(delay).await {
            Ok(name) => Ok(Destination::queue(&name)),
            Err(fault) if fault.refused => {
                tracing::warn!(
                    queue = self.label,
                    problem = fault.problem,
                    "no queue to wait in: trying again without a pause"
                );
                Ok(Destination::queue(&self.settings.queue))
            }
            Err(fault) => Err(fault),
        }
    }

    fn message(session: &Session, in_flight: &InFlight) -> Message {
        let delivery = &in_flight.delivery;
        let receipt = format!("{}:{}", session.generation, delivery.delivery_tag);
        // A name that no one gave is ours, and differs from delivery to delivery.
        let id = delivery.properties.message_id().as_ref().map_or_else(|| receipt.clone(), ToString::to_string);
        Message {
            record: record::record(delivery, &id, in_flight.attempt),
            identity: record::identity(delivery),
            id,
            receipt,
            attempt: in_flight.attempt,
            deferral: record::deferral(&delivery.properties),
            group: None,
            body: delivery.data.clone(),
            trace: record::trace(&delivery.properties),
            sent: record::sent(&delivery.properties),
            received: in_flight.since.into_std(),
            ended: record::ended(&delivery.properties),
        }
    }
}

#[async_trait]
impl Source for RabbitMq {
    fn name(&self) -> &'static str {
        "rabbitmq"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn shape(&self) -> Shape {
        let host = self.settings.broker().unwrap_or_default();
        Shape::RabbitMq {
            event_source_arn: format!("arn:aws:mq:local:000000000000:broker:{host}"),
            queue: format!("{}::{}", self.settings.queue, self.settings.vhost),
        }
    }

    fn keeps_refused(&self) -> bool {
        self.settings.keep_refused
    }

    /// An attempt to connect that fails comes back as an error, once; the next call waits for the next attempt.
    async fn receive(&self, most: usize) -> Result<Vec<Message>, SourceError> {
        let mut state = self.connection_manager.state();
        let closing = self.connection_manager.closing();
        loop {
            if closing.is_cancelled() {
                return Ok(Vec::new());
            }
            let now = state.borrow_and_update().clone();
            let taken = async {
                match &now {
                    State::Up(session) => {
                        let taken = session.take(most.max(1)).await;
                        taken.iter().map(|in_flight| Self::message(session, in_flight)).collect()
                    }
                    State::Connecting | State::Down(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                messages = taken => return Ok(messages),
                () = closing.cancelled() => {}
                changed = state.changed() => {
                    let over = Fault::unavailable("no one keeps the connection any more");
                    changed.map_err(|_| self.at("receive")(over))?;
                    if let State::Down(fault) = &*state.borrow() {
                        return Err(self.at("receive")(fault.clone()));
                    }
                }
            }
        }
    }

    async fn ack(&self, message: &Message) -> Result<(), SourceError> {
        self.acknowledge(message, Disposition::Done, "acknowledge").await
    }

    /// The delay is rounded up to 1, 2, 5, 15 s, 1, 5, 15 min or 1 h. Where the queue for it must not be made, the message
    /// goes to the end of the queue of jobs at once; where that must not be published to either, it is rejected with
    /// requeue. A broker that takes no messages for now (it is short of memory or disk) gets the same answer, after the delay or
    /// half a minute. Only a rejection does not count the attempt on a classic queue.
    async fn retry(&self, message: &Message, delay: Duration) -> Result<(), SourceError> {
        let (session, in_flight) = self.receipt(message, "retry")?;
        let moved = match self.waiting_room(&session, delay).await {
            Ok(to) => self.move_to(&session, (message, &in_flight), &to, Note::Retry).await,
            Err(fault) => Err(fault),
        };
        let disposition = match moved {
            Ok(()) => Disposition::Done,
            Err(fault) => {
                tracing::warn!(queue = self.label, problem = fault.problem, "rejecting with requeue");
                if !fault.refused {
                    // It comes back at once, and the broker is short of something already.
                    tokio::time::sleep(delay.min(REJECTION_PAUSE_MAX)).await;
                }
                Disposition::Failed
            }
        };
        session.acknowledge(&in_flight, disposition).await.map_err(|problem| self.lost("retry", problem))
    }

    fn window(&self) -> Option<usize> {
        Some(self.settings.prefetch.into())
    }

    /// As [`Self::retry`], an hour at most. A message that may not wait in a queue of its own, or that the broker takes no copy of,
    /// waits here for half a minute at most: else it would go round and round.
    async fn defer(&self, message: &Message, delay: Duration, reason: DeferReason) -> Result<(), SourceError> {
        let (session, in_flight) = self.receipt(message, "defer")?;
        let room = session.retry_queue(delay).await;
        let to = Destination::queue(room.as_deref().unwrap_or(&self.settings.queue));
        if let Err(fault) = room {
            tracing::warn!(queue = self.label, problem = fault.problem, "no queue to wait in: it waits here for a while");
            tokio::time::sleep(delay.min(REJECTION_PAUSE_MAX)).await;
        }
        let deferral = Deferral::next(message.deferral, reason, SystemTime::now());
        let attempts = in_flight.attempt.saturating_sub(1);
        let properties = publish::again(&in_flight.delivery.properties, attempts, Note::Deferred(deferral));
        let properties = publish::with_end(properties, message.ended.as_ref());
        let disposition = match session.publish(&to, &in_flight.delivery.data, properties).await {
            Ok(()) => Disposition::Done,
            Err(fault) => {
                tracing::warn!(queue = self.label, problem = fault.problem, "handing a message back that was to wait");
                tokio::time::sleep(delay.min(REJECTION_PAUSE_MAX)).await;
                // Counted where the job has ended: then whoever gets it looks for its record, and for the note of its failure.
                if message.ended.is_some() { Disposition::Failed } else { Disposition::Untried }
            }
        };
        session.acknowledge(&in_flight, disposition).await.map_err(|problem| self.lost("defer", problem))
    }

    async fn release(&self, message: &Message) -> Result<(), SourceError> {
        self.acknowledge(message, Disposition::Untried, "release").await
    }

    /// With `declare` the message is published to our own dead-letter exchange, with reason and attempts in its headers:
    /// that exchange is there, and the publication is confirmed. A queue that was found is its owner's, and AMQP does not
    /// say where it dead-letters to: there the message is rejected, and the reason stands in the log alone. So it is with a
    /// broker that takes no messages for now. If the owner keeps no dead letters, RabbitMQ drops it.
    async fn dead_letter(&self, message: &Message, reason: &str) -> Result<(), SourceError> {
        let (session, in_flight) = self.receipt(message, "dead-letter")?;
        let moved = if self.settings.declare {
            let to = Destination::exchange(&topology::dead_letter_exchange(&self.settings.queue), &self.settings.queue);
            self.move_to(&session, (message, &in_flight), &to, Note::Dead(reason)).await.is_ok()
        } else {
            false
        };
        let disposition = if moved {
            Disposition::Done
        } else {
            tracing::warn!(queue = self.label, message_id = message.id, reason, "rejected: its queue dead-letters it");
            Disposition::Dead
        };
        session.acknowledge(&in_flight, disposition).await.map_err(|problem| self.lost("dead-letter", problem))
    }

    async fn send(&self, job_id: &str, body: &[u8], trace: Option<Trace>) -> Result<(), SourceError> {
        let properties = publish::job_properties(job_id, trace).map_err(self.at("send"))?;
        let session = self.connection_manager.session().await.map_err(self.at("send"))?;
        session.publish(&Destination::queue(&self.settings.queue), body, properties).await.map_err(self.at("send"))
    }

    /// What waits for another attempt, or with another host, is not among them. RabbitMQ does not say how old the oldest is.
    async fn depth(&self) -> Result<Depth, SourceError> {
        let session = self.connection_manager.session().await.map_err(self.at("depth"))?;
        let waiting = session.depth().await.map_err(self.at("depth"))?;
        Ok(Depth { waiting, oldest: None })
    }

    async fn close(&self) {
        self.connection_manager.closing().cancel();
        let now = self.connection_manager.state().borrow().clone();
        if let State::Up(session) = now {
            session.emptied.cancelled().await;
        }
    }
}
