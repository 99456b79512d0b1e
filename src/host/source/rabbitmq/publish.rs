//! Messages out: persistent, confirmed, and never dropped for want of a queue.

use std::collections::BTreeMap;
use std::time::SystemTime;

use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation};
use uuid::Uuid;

use super::fault::{Fault, within};
use crate::host::ended::EndedJob;
use crate::job::trace::{TRACEPARENT, Trace};
use crate::protocol::deferral::Deferral;

/// Attempts that were made before the message was published again: a new message to the broker, which counts from 0.
pub(super) const ATTEMPT_HEADER: &str = "x-atelier-attempt";
/// Why the message was dead-lettered.
pub(super) const REASON_HEADER: &str = "x-atelier-reason";
/// What tells a message of ours from every other one: a job that is sent again has the same `message_id`.
pub(super) const IDENTITY_HEADER: &str = "x-atelier-message";
/// Why and since when the message waits, as [`Deferral`] writes it.
pub(super) const DEFERRED_HEADER: &str = "x-atelier-deferred";

/// How the message's job ended ([`EndedJob`]).
pub(super) const ENDED_HEADER: &str = "x-atelier-ended";

/// A header must fit into one frame with all the others.
const MAX_REASON_BYTES: usize = 1024;
const PERSISTENT: u8 = 2;

/// Sets one property.
type With = fn(BasicProperties, ShortString) -> BasicProperties;

/// What a message that is published again says of why it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Note<'a> {
    Retry,
    Deferred(Deferral),
    /// The reason for which it is dead-lettered.
    Dead(&'a str),
}

/// Where a message is published to.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    exchange: String,
    routing_key: String,
}

impl Destination {
    pub(super) fn queue(name: &str) -> Self {
        Self { exchange: String::new(), routing_key: name.to_owned() }
    }

    pub(super) fn exchange(name: &str, routing_key: &str) -> Self {
        Self { exchange: name.to_owned(), routing_key: routing_key.to_owned() }
    }
}

/// Returns when the broker has the message for good. `channel` has confirms on.
pub(super) async fn publish(
    channel: &Channel,
    to: &Destination,
    body: &[u8],
    properties: BasicProperties,
) -> Result<(), Fault> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let exchange = to.exchange.as_str();
    let key = to.routing_key.as_str();
    let confirmation =
        within(async { channel.basic_publish(exchange.into(), key.into(), options, body, properties).await?.await }).await?;
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) if exchange.is_empty() => Err(Fault::refused(format!("there is no queue {key:?}"))),
        Confirmation::Ack(Some(_)) => Err(Fault::refused(format!("no queue is bound to the exchange {exchange:?}"))),
        Confirmation::Nack(_) => Err(Fault::unavailable("the broker did not take the message (is the queue full?)")),
        Confirmation::NotRequested => Err(Fault::unavailable("the channel does not confirm")),
    }
}

/// Properties of a new job.
pub(super) fn job_properties(job_id: &str, trace: Option<Trace>) -> Result<BasicProperties, Fault> {
    let id = ShortString::try_new(job_id)
        .map_err(|_| Fault::refused(format!("a job id of {} bytes is too long, at most 255 are allowed", job_id.len())))?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let properties = BasicProperties::default()
        .with_message_id(id)
        .with_content_type("application/json".into())
        .with_delivery_mode(PERSISTENT)
        .with_timestamp(now.as_secs());
    let mut headers = FieldTable::default();
    headers.insert(IDENTITY_HEADER.into(), AMQPValue::LongString(Uuid::now_v7().to_string().into()));
    if let Some(trace) = trace {
        headers.insert(TRACEPARENT.into(), AMQPValue::LongString(trace.to_traceparent().into()));
    }
    Ok(properties.with_headers(headers))
}

/// The caller's own properties for a message that is published again, with `attempts` made so far.
///
/// Left out is what would not do the same twice: `expiration` (it was not too late when the message came, and would empty
/// the queue that it waits in), `user_id` (the broker wants the name of who publishes), `CC` and `BCC` (they would copy the
/// message again), and what the broker itself counts and writes.
pub(super) fn again(properties: &BasicProperties, attempts: u32, note: Note<'_>) -> BasicProperties {
    let own = properties.headers().iter().flatten().filter(|(name, _)| !is_broken_by_copying(name.as_str()));
    let mut headers: BTreeMap<ShortString, AMQPValue> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
    headers.insert(ATTEMPT_HEADER.into(), AMQPValue::LongLongInt(attempts.into()));
    match note {
        Note::Retry => {}
        Note::Deferred(deferral) => {
            headers.insert(DEFERRED_HEADER.into(), AMQPValue::LongString(deferral.to_string().into()));
        }
        Note::Dead(reason) => {
            let reason = &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)];
            headers.insert(REASON_HEADER.into(), AMQPValue::LongString(LongString::from(reason)));
        }
    }
    copied(properties, headers)
}

/// The properties that do the same twice, with these headers.
fn copied(properties: &BasicProperties, headers: BTreeMap<ShortString, AMQPValue>) -> BasicProperties {
    let mut copy = BasicProperties::default().with_headers(FieldTable::from(headers)).with_delivery_mode(PERSISTENT);
    let texts: [(_, With); 8] = [
        (properties.content_type(), BasicProperties::with_content_type),
        (properties.content_encoding(), BasicProperties::with_content_encoding),
        (properties.correlation_id(), BasicProperties::with_correlation_id),
        (properties.reply_to(), BasicProperties::with_reply_to),
        (properties.message_id(), BasicProperties::with_message_id),
        (properties.kind(), BasicProperties::with_type),
        (properties.app_id(), BasicProperties::with_app_id),
        (properties.cluster_id(), BasicProperties::with_cluster_id),
    ];
    for (value, with) in texts {
        if let Some(value) = value {
            copy = with(copy, value.clone());
        }
    }
    if let Some(priority) = properties.priority() {
        copy = copy.with_priority(*priority);
    }
    if let Some(timestamp) = properties.timestamp() {
        copy = copy.with_timestamp(*timestamp);
    }
    copy
}

/// The same with how its job ended, or without.
pub(super) fn with_end(properties: BasicProperties, ended: Option<&EndedJob>) -> BasicProperties {
    let others = properties.headers().iter().flatten().filter(|(name, _)| name.as_str() != ENDED_HEADER);
    let others = others.map(|(name, value)| (name.clone(), value.clone()));
    let ended = ended.map(|ended| (ENDED_HEADER.into(), AMQPValue::LongString(ended.encode().into())));
    let headers: BTreeMap<ShortString, AMQPValue> = others.chain(ended).collect();
    properties.with_headers(FieldTable::from(headers))
}

/// Of a message that is put back where it was, as it was, but for what the broker counts and what would copy or end it.
pub(super) fn unchanged(properties: &BasicProperties) -> BasicProperties {
    let others = properties.headers().iter().flatten().filter(|(name, _)| !is_of_one_delivery(name.as_str()));
    copied(properties, others.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn is_of_one_delivery(header: &str) -> bool {
    ["CC", "BCC", "x-delivery-count", "x-acquired-count"].contains(&header)
}

fn is_broken_by_copying(header: &str) -> bool {
    let exact = ["x-death", ATTEMPT_HEADER, REASON_HEADER, DEFERRED_HEADER];
    is_of_one_delivery(header)
        || exact.contains(&header)
        || header.starts_with("x-first-death-")
        || header.starts_with("x-last-death-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_is_the_callers_and_drops_what_would_not_do_the_same_twice() {
        let mut headers = FieldTable::default();
        for name in ["trace", "CC", "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count"] {
            headers.insert(name.into(), AMQPValue::LongLongInt(7));
        }
        let original = BasicProperties::default()
            .with_headers(headers)
            .with_message_id("job-1".into())
            .with_correlation_id("c".into())
            .with_priority(3)
            .with_timestamp(9)
            .with_expiration("1".into())
            .with_user_id("backend".into());
        let copy = again(&original, 2, Note::Dead("no"));
        let names: Vec<&str> = copy.headers().iter().flatten().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["trace", ATTEMPT_HEADER, REASON_HEADER]);
        assert_eq!((copy.expiration(), copy.user_id()), (&None, &None));
        assert_eq!((copy.message_id(), copy.correlation_id()), (original.message_id(), original.correlation_id()));
        assert_eq!((copy.priority(), copy.timestamp(), copy.delivery_mode()), (&Some(3), &Some(9), &Some(PERSISTENT)));
        let long = again(&original, 2, Note::Dead(&"é".repeat(MAX_REASON_BYTES)));
        let reason = &long.headers().as_ref().expect("headers").inner()[REASON_HEADER];
        assert!(reason.as_long_string().is_some_and(|reason| reason.len() <= MAX_REASON_BYTES));
    }
}
