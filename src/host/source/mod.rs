//! Where jobs come from: queues behind one trait, each informed of what became of its messages.

pub mod dead_letters;
pub mod rabbitmq;
pub mod spool;
pub mod sqs;

use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use serde_json::Value;

use super::ended::EndedJob;
use crate::job::trace::Trace;
use crate::protocol::deferral::{DeferReason, Deferral};
use crate::setting::SettingError;

/// One message in flight: from its receipt until it is acknowledged, put back or dead-lettered.
#[derive(Debug, Clone)]
pub struct Message {
    /// The queue's own name for the message; in `record` it is what a partial batch failure names.
    pub id: String,
    /// The same in every delivery of the message and of its copies. Where the queue and the publisher name it, no other message has it.
    pub identity: String,
    /// What the queue wants to hear when the message is settled; means something to its source alone.
    pub receipt: String,
    /// Which delivery this is, counted from 1.
    pub attempt: u32,
    /// Why and since when it waited before this delivery, where it was deferred.
    pub deferral: Option<Deferral>,
    /// Messages of one group are settled in order (SQS FIFO).
    pub group: Option<String>,
    pub body: Vec<u8>,
    pub trace: Option<Trace>,
    /// When the message was sent, where the queue knows.
    pub sent: Option<SystemTime>,
    pub received: Instant,
    /// Where its job has ended and nothing but notifications is left. Goes along wherever the message goes.
    pub ended: Option<EndedJob>,
    /// The message as AWS puts it into an event of this kind of queue: an element of `Records` or of `rmqMessagesByQueue`.
    pub record: Value,
}

/// Which of AWS's events the messages of a source are put into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    Sqs,
    /// `queue`: the key under `rmqMessagesByQueue`, such as `image_generation::/`.
    RabbitMq {
        event_source_arn: String,
        queue: String,
    },
}

/// What waits in a queue, as far as the queue says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Messages that no one has in flight.
    pub waiting: u64,
    pub oldest: Option<Duration>,
}

/// Why a queue could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// It may work later: the queue is away, throttles, or the disk is full.
    #[error("{queue}: {action}: {problem}")]
    Unavailable { queue: String, action: &'static str, problem: String },
    /// The message is no longer ours (its time ran out, the connection broke): the queue delivers it again by itself.
    #[error("{queue}: {action}: the message is no longer in flight ({problem}); the queue delivers it again")]
    Lost { queue: String, action: &'static str, problem: String },
    /// There is no such queue any more: whatever was in it is lost.
    #[error("{queue}: {action}: {problem}")]
    Gone { queue: String, action: &'static str, problem: String },
    /// It never will: no such queue, no permission, a message that is too large.
    #[error("{queue}: {action}: {problem}")]
    Refused { queue: String, action: &'static str, problem: String },
    /// This very message never will be taken; others may.
    #[error("the job has {bytes} bytes, and its queue takes {most_bytes} at most (MaximumMessageSize)")]
    TooLarge { bytes: usize, most_bytes: usize },
}

/// Why a source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// A queue of jobs. Every call may be made from several tasks at once.
#[async_trait]
pub trait Source: Send + Sync {
    /// `sqs`, `rabbitmq` or `spool`: the name in logs and metrics.
    fn name(&self) -> &'static str;

    fn shape(&self) -> Shape;

    /// Whether refused messages are dead-lettered even when their sender was notified: `keep_refused` of its settings.
    fn keeps_refused(&self) -> bool {
        false
    }

    /// Whether other hosts may take its messages.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether [`Message::sent`] is the queue's own word in a first delivery, by this machine's clock; else it is the sender's, if anybody's.
    fn knows_when_sent(&self) -> bool {
        false
    }

    /// How often [`Self::extend`] must be called for every message in flight, from its receipt on; none: never.
    fn heartbeat(&self) -> Option<Duration> {
        None
    }

    /// Waits for messages, at least one and at most `most`; an empty list means: nothing for now, call again. Called only
    /// while a handler is free. A call that is dropped loses no message: what arrives later comes out of the next call, or
    /// goes back with [`Self::close`].
    ///
    /// # Errors
    /// [`SourceError`]; the caller waits a little and calls again.
    async fn receive(&self, most: usize) -> Result<Vec<Message>, SourceError>;

    /// How many jobs come before the one of this id that waits, of those whose id `counts`, where this process knows; none too where no
    /// such job waits.
    fn position(&self, _job_id: &str, _counts: &dyn Fn(&str) -> bool) -> Option<u64> {
        None
    }

    /// Why nothing is received although the queue is there, until an operator has repaired it.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Keeps the message in flight for another while.
    ///
    /// # Errors
    /// [`SourceError::Lost`] when it is not ours any more.
    async fn extend(&self, _message: &Message) -> Result<(), SourceError> {
        Ok(())
    }

    /// The message is settled: it never comes back.
    ///
    /// # Errors
    /// [`SourceError`]; then it does come back, and is replayed for free.
    async fn ack(&self, message: &Message) -> Result<(), SourceError>;

    /// The job failed and may succeed later: the message comes back after `delay`, with its attempt counted.
    ///
    /// # Errors
    /// [`SourceError`]; then it comes back whenever the queue says.
    async fn retry(&self, message: &Message, delay: Duration) -> Result<(), SourceError>;

    /// Messages that may be here unacknowledged at once, where the queue bounds that: those that cannot be started keep others out.
    fn window(&self) -> Option<usize> {
        None
    }

    /// The job cannot go on now, and that is no fault of its own: the message comes back as the same attempt, about `delay` later,
    /// at this host or another one. [`Message::deferral`] says then why and since when. It may wait as long as it must: what waits
    /// takes up no [`Self::window`], is in the queue's care when this host ends, and outlives what the queue allows one delivery
    /// (12 hours in SQS, RabbitMQ's `consumer_timeout`). A queue that cannot wait for `delay` brings it back sooner.
    ///
    /// The caller extends it no longer.
    ///
    /// # Errors
    /// [`SourceError`]; then it comes back whenever the queue says, perhaps as another attempt.
    async fn defer(&self, message: &Message, delay: Duration, reason: DeferReason) -> Result<(), SourceError>;

    /// The job was not tried, or stopped by us (drain): the message comes back at once, and its attempt is not counted
    /// where the queue knows the difference.
    ///
    /// # Errors
    /// [`SourceError`]; then it comes back whenever the queue says.
    async fn release(&self, message: &Message) -> Result<(), SourceError>;

    /// The job failed for good: the message goes where failed ones are kept, with `reason`; it never comes back by itself.
    ///
    /// # Errors
    /// [`SourceError`]; then the message is still in flight.
    async fn dead_letter(&self, message: &Message, reason: &str) -> Result<(), SourceError>;

    /// Puts a new job into the queue, with its trace; returns when the queue has it for good.
    ///
    /// # Errors
    /// [`SourceError`]; then the job was not accepted.
    async fn send(&self, job_id: &str, body: &[u8], trace: Option<Trace>) -> Result<(), SourceError>;

    /// As [`Self::send`]; a queue that can be fair to tenants learns whose job it is.
    ///
    /// # Errors
    /// As [`Self::send`].
    async fn send_for(
        &self,
        _tenant: Option<&str>,
        job_id: &str,
        body: &[u8],
        trace: Option<Trace>,
    ) -> Result<(), SourceError> {
        self.send(job_id, body, trace).await
    }

    /// # Errors
    /// [`SourceError`] when the queue cannot be asked.
    async fn depth(&self) -> Result<Depth, SourceError>;

    /// Receives nothing more and puts back what has arrived and was not handed out. Messages in flight can still be settled.
    async fn close(&self);
}
