//! A delivery as AWS puts it into an `aws:rmq` event, and which attempt it is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use std::time::{Duration, SystemTime};

use super::frame::UNREADABLE_HEADER;
use super::publish::{ATTEMPT_HEADER, DEFERRED_HEADER, ENDED_HEADER, IDENTITY_HEADER, REASON_HEADER};
use crate::host::ended::EndedJob;
use crate::job::trace::{TRACEPARENT, Trace};
use crate::protocol::deferral::Deferral;

/// Deliveries of this copy of the message before this one, as the broker counts: a quorum queue says how many there were,
/// a classic one only whether there was one.
pub(super) fn broker_count(delivery: &Delivery) -> u32 {
    number(&delivery.properties, "x-delivery-count").unwrap_or_else(|| u32::from(delivery.redelivered))
}

/// Attempts that earlier copies of the message have used up.
pub(super) fn earlier_attempts(properties: &BasicProperties) -> u32 {
    if is_sent_anew(properties) { 0 } else { number(properties, ATTEMPT_HEADER).unwrap_or(0) }
}

/// Whether the message was among the dead letters since our headers were written: a dead letter of ours has a reason, and a copy that
/// waits has neither that nor any rejection. Whoever sends it again wants its job run again.
fn is_sent_anew(properties: &BasicProperties) -> bool {
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    headers.is_some_and(|headers| headers.contains_key(REASON_HEADER)) || was_rejected(properties)
}

/// As the broker says of the dead letters of a queue, whoever sent them again: `x-death` has each queue that the message left, and
/// next to it stand the first and the last.
fn was_rejected(properties: &BasicProperties) -> bool {
    let is_rejection = |reason: Option<&str>| matches!(reason, Some("rejected" | "delivery_limit"));
    let deaths = match properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death")) {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
        _ => &[],
    };
    let mut reasons = deaths.iter().filter_map(|death| match death {
        AMQPValue::FieldTable(death) => Some(death.inner().get("reason").and_then(text_of)),
        _ => None,
    });
    reasons.any(is_rejection)
        || is_rejection(text(properties, "x-first-death-reason"))
        || is_rejection(text(properties, "x-last-death-reason"))
}

fn number(properties: &BasicProperties, header: &str) -> Option<u32> {
    let number = match properties.headers().as_ref()?.inner().get(header)? {
        AMQPValue::ShortShortInt(number) => i64::from(*number),
        AMQPValue::ShortShortUInt(number) => i64::from(*number),
        AMQPValue::ShortInt(number) => i64::from(*number),
        AMQPValue::ShortUInt(number) => i64::from(*number),
        AMQPValue::LongInt(number) => i64::from(*number),
        AMQPValue::LongUInt(number) => i64::from(*number),
        AMQPValue::LongLongInt(number) => *number,
        _ => return None,
    };
    Some(u32::try_from(number.max(0)).unwrap_or(u32::MAX))
}

/// Why the message's own headers are not there, where they could not be parsed.
pub(super) fn unreadable(properties: &BasicProperties) -> Option<String> {
    properties.headers().as_ref()?.inner().get(UNREADABLE_HEADER).map(|problem| match problem {
        AMQPValue::LongString(text) => text.to_string(),
        _ => "its headers cannot be read".to_owned(),
    })
}

/// The header `traceparent`.
pub(super) fn trace(properties: &BasicProperties) -> Option<Trace> {
    Trace::from_traceparent(text(properties, TRACEPARENT)?)
}

/// Why and since when the message waited.
pub(super) fn deferral(properties: &BasicProperties) -> Option<Deferral> {
    if is_sent_anew(properties) {
        return None;
    }
    text(properties, DEFERRED_HEADER)?.parse().ok()
}

/// A publisher need not name its messages; then equal ones are taken for one.
pub(super) fn identity(delivery: &Delivery) -> String {
    let properties = &delivery.properties;
    if let Some(own) = text(properties, IDENTITY_HEADER) {
        return own.to_owned();
    }
    let named = (properties.message_id().as_ref().map(ShortString::as_str), properties.timestamp());
    let hash = Sha256::new().chain_update(format!("{named:?}\n")).chain_update(&delivery.data);
    base16ct::lower::encode_string(&hash.finalize())
}

fn text<'a>(properties: &'a BasicProperties, header: &str) -> Option<&'a str> {
    text_of(properties.headers().as_ref()?.inner().get(header)?)
}

fn text_of(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// How the message's job ended, where nothing but its notifications is left. A queue that is someone else's dead-letters a message with
/// what it came with: that says how its job had ended before, and nothing of why it is sent again.
pub(super) fn ended(properties: &BasicProperties) -> Option<EndedJob> {
    if was_rejected(properties) {
        return None;
    }
    match properties.headers().as_ref()?.inner().get(ENDED_HEADER)? {
        AMQPValue::LongString(text) => EndedJob::decode(text.as_bytes()),
        _ => None,
    }
}

/// Why the message was dead-lettered: in our own words, else in the broker's.
pub(super) fn reason(properties: &BasicProperties) -> Option<String> {
    let headers = [REASON_HEADER, "x-last-death-reason", "x-first-death-reason"];
    headers.into_iter().find_map(|header| text(properties, header)).map(str::to_owned)
}

/// When the message was sent, where the sender says; RabbitMQ itself notes whole seconds.
pub(super) fn sent(properties: &BasicProperties) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs((*properties.timestamp())?))
}

/// The element of `rmqMessagesByQueue`. `x-delivery-count` is set so that who reads the event counts the same `attempt`.
pub(super) fn record(delivery: &Delivery, id: &str, attempt: u32) -> Value {
    let properties = &delivery.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let mut headers = properties.headers().as_ref().map(table).unwrap_or_default();
    headers.insert("x-delivery-count".into(), attempt.saturating_sub(1).into());
    json!({
        "basicProperties": {
            "contentType": text(properties.content_type()),
            "contentEncoding": text(properties.content_encoding()),
            "headers": headers,
            "deliveryMode": properties.delivery_mode().unwrap_or(1),
            "priority": properties.priority().unwrap_or(0),
            "correlationId": text(properties.correlation_id()),
            "replyTo": text(properties.reply_to()),
            "expiration": text(properties.expiration()),
            "messageId": id,
            "timestamp": sent(properties).and_then(date),
            "type": text(properties.kind()),
            "userId": text(properties.user_id()),
            "appId": text(properties.app_id()),
            "clusterId": text(properties.cluster_id()),
            "bodySize": delivery.data.len(),
        },
        "redelivered": delivery.redelivered,
        "data": STANDARD.encode(&delivery.data),
    })
}

fn table(table: &FieldTable) -> Map<String, Value> {
    table.into_iter().map(|(name, value)| (name.to_string(), header(value))).collect()
}

/// AWS writes texts as `{"bytes": [...]}`, because AMQP does not say which encoding they have.
fn header(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::DecimalValue(value) => (f64::from(value.value) / 10f64.powi(value.scale.into())).into(),
        AMQPValue::ShortString(value) => json!({ "bytes": value.as_str().as_bytes() }),
        AMQPValue::LongString(value) => json!({ "bytes": value.as_bytes() }),
        AMQPValue::ByteArray(value) => json!({ "bytes": value.as_slice() }),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(header).collect(),
        AMQPValue::Timestamp(seconds) => {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds)).and_then(date).into()
        }
        AMQPValue::FieldTable(inner) => table(inner).into(),
        AMQPValue::Void => Value::Null,
    }
}

/// `Nov 21, 2026, 10:00:00 PM`, in UTC.
fn date(time: SystemTime) -> Option<String> {
    // httpdate ends in the year 9999 and panics behind it.
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    if seconds >= 253_402_300_800 {
        return None;
    }
    let http = httpdate::fmt_http_date(time);
    let [_, day, month, year, clock, _] = http.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    let (hour, rest) = clock.split_once(':')?;
    let day: u8 = day.parse().ok()?;
    let hour: u8 = hour.parse().ok()?;
    let half = if hour < 12 { "AM" } else { "PM" };
    Some(format!("{month} {day}, {year}, {}:{rest} {half}", (hour + 11) % 12 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_aws_writes_them() {
        for (seconds, expected) in [
            (2_021, Some("Jan 1, 1970, 12:33:41 AM")),
            (1_795_298_400, Some("Nov 21, 2026, 10:00:00 PM")),
            (43_200, Some("Jan 1, 1970, 12:00:00 PM")),
            (u64::MAX / 4, None),
        ] {
            let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
            assert_eq!(time.and_then(date).as_deref(), expected, "{seconds}");
        }
    }

    #[test]
    fn a_dead_letter_that_is_sent_again_starts_anew() {
        let ours = [
            (ATTEMPT_HEADER, AMQPValue::LongLongInt(2)),
            (DEFERRED_HEADER, AMQPValue::LongString("notification_undelivered@1795930394".into())),
            (ENDED_HEADER, AMQPValue::LongString(EndedJob::complete(1).encode().into())),
        ];
        let death = |reason: &str| {
            let mut death = FieldTable::default();
            death.insert("queue".into(), AMQPValue::LongString("jobs".into()));
            death.insert("reason".into(), AMQPValue::LongString(reason.into()));
            ("x-death", AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()))
        };
        let word = |name, reason: &str| (name, AMQPValue::LongString(reason.into()));
        for (more, attempts, has_deferral, has_ended) in [
            (None, 2, true, true),
            (Some(death("expired")), 2, true, true),
            (Some(word("x-last-death-reason", "expired")), 2, true, true),
            (Some(death("rejected")), 0, false, false),
            (Some(death("delivery_limit")), 0, false, false),
            (Some(word("x-last-death-reason", "rejected")), 0, false, false),
            // Our own dead letter of a job whose webhook was not taken: it is told again.
            (Some(word(REASON_HEADER, "webhook_failed")), 0, false, true),
        ] {
            let mut headers = FieldTable::default();
            for (name, value) in ours.iter().cloned().chain(more.clone()) {
                headers.insert(name.into(), value);
            }
            let properties = BasicProperties::default().with_headers(headers);
            let found = (earlier_attempts(&properties), deferral(&properties).is_some(), ended(&properties).is_some());
            assert_eq!(found, (attempts, has_deferral, has_ended), "{more:?}");
        }
    }

    #[test]
    fn headers_are_written_as_aws_writes_them() {
        let mut inner = FieldTable::default();
        inner.insert("n".into(), AMQPValue::LongLongInt(-5));
        let mut headers = FieldTable::default();
        headers.insert("text".into(), AMQPValue::LongString("ab".into()));
        headers.insert("list".into(), AMQPValue::FieldArray(vec![AMQPValue::Boolean(true), AMQPValue::Void].into()));
        headers.insert("table".into(), AMQPValue::FieldTable(inner));
        let expected = json!({ "text": { "bytes": [97, 98] }, "list": [true, null], "table": { "n": -5 } });
        assert_eq!(Value::from(table(&headers)), expected);
    }
}
