//! Whether the queues that are on can be asked, and what becomes there of jobs that fail for good.

use std::time::Duration;

use super::finding::Finding;
use super::{aside, within};
use crate::config::Config;
use crate::host::source::rabbitmq::inspect::{Found, Likeness};
use crate::host::source::{ConnectError, rabbitmq, spool, sqs};

const SQS: &str = "sqs";
const RABBITMQ: &str = "rabbitmq";
const SPOOL: &str = "spool";
/// What a directory of jobs and their dead ones can need within a day.
const LITTLE_ROOM_BYTES: u64 = 1 << 30;

pub(super) async fn check(config: &Config, limit: Duration) -> Vec<Finding> {
    let (sqs, rabbitmq, spool) = tokio::join!(
        within(limit, SQS, check_sqs(config)),
        within(limit, RABBITMQ, check_rabbitmq(config)),
        within(limit, SPOOL, check_spool(config)),
    );
    vec![sqs, rabbitmq, spool]
}

async fn check_sqs(config: &Config) -> Finding {
    let settings = &config.sources.sqs;
    if settings.queue_url.is_none() {
        return Finding::skip(SQS, "off: SQS_QUEUE_URL (sources.sqs.queue_url) is not set");
    }
    match sqs::inspect::inspect(&sqs::Settings { max_attempts: settings.max_attempts.min(2), ..settings.clone() }).await {
        Ok(found) => judge_sqs(&found, config.runtime.max_attempts, config.notify.give_up_after()),
        Err(error) => unusable(
            SQS,
            &error,
            "correct what it names: sources.sqs, the credentials, or their policy (sqs:GetQueueAttributes)",
        ),
    }
}

fn judge_sqs(found: &sqs::inspect::Found, max_attempts: u32, give_up_after: Duration) -> Finding {
    let kind = if found.fifo { "FIFO queue" } else { "queue" };
    let about = format!("{kind}, {} waiting, visibility timeout {} s", found.waiting, found.visibility_seconds);
    let retention = Duration::from_secs(found.retention_seconds);
    if retention < give_up_after {
        return Finding::fail(
            SQS,
            format!("{about}; {}", too_short("MessageRetentionPeriod", retention, give_up_after)),
            LONGER,
        );
    }
    let Some(redrive) = &found.redrive else {
        let found = format!("{about}, no redrive policy: what fails for good is deleted");
        return Finding::warn(SQS, found, "give the queue a redrive policy with a dead-letter queue");
    };
    if let Err(error) = &redrive.queue {
        let found = format!("{about}; its dead-letter queue: {error}");
        return Finding::fail(SQS, found, "make that queue, or allow sqs:GetQueueUrl and sqs:SendMessage on it");
    }
    if let Some(most) = redrive.most_bytes.filter(|most| *most < found.most_bytes) {
        let found = format!(
            "{about}; it takes messages of {} bytes, its dead-letter queue only of {most} (MaximumMessageSize): a larger job that fails is deleted",
            found.most_bytes
        );
        return Finding::warn(SQS, found, "give the dead-letter queue the MaximumMessageSize of the queue of jobs");
    }
    match redrive.most_receives {
        Some(most) if most <= u64::from(max_attempts) => Finding::warn(
            SQS,
            format!(
                "{about}; its maxReceiveCount is {most}, and runtime.max_attempts is {max_attempts}: SQS may move a job before its caller is notified"
            ),
            "under `atelier host` set maxReceiveCount well above it (10, say); on Lambda the same number is right",
        ),
        most => Finding::ok(SQS, format!("{about}, to its dead-letter queue after {} deliveries", most.unwrap_or_default())),
    }
}

const LONGER: &str = "have the queue keep messages for longer (14 days, say), or give up earlier (notify.give_up_after_hours)";

fn too_short(what: &str, retention: Duration, give_up_after: Duration) -> String {
    format!(
        "its {what} is {} s, and webhooks are sent again for {} s (notify.give_up_after_hours): what the queue drops before is never reported",
        retention.as_secs(),
        give_up_after.as_secs()
    )
}

async fn check_rabbitmq(config: &Config) -> Finding {
    let settings = &config.sources.rabbitmq;
    if settings.broker().is_none() {
        return Finding::skip(RABBITMQ, "off: RABBITMQ_HOST (sources.rabbitmq.host) is not set");
    }
    let how = "start the broker or open the way to it, make the queue (or set sources.rabbitmq.declare: true), or correct sources.rabbitmq";
    match rabbitmq::inspect::inspect(settings).await {
        Ok(found) => judge_rabbitmq(&found, settings, config.notify.give_up_after()),
        Err(error) => unusable(RABBITMQ, &error, how),
    }
}

fn judge_rabbitmq(found: &Found, settings: &rabbitmq::settings::Settings, give_up_after: Duration) -> Finding {
    let queue = &settings.queue;
    let Found::There { waiting, likeness } = found else {
        return Finding::ok(RABBITMQ, format!("connected; the queue {queue:?} is not there yet, the host makes it"));
    };
    let about = format!("{queue:?} at {}:{}, {waiting} waiting", settings.broker().unwrap_or_default(), settings.port);
    let again = "make the queue anew (sources.rabbitmq.declare: true makes it as it should be)";
    if let Some(difference) = likeness.difference().filter(|_| settings.declare) {
        let fix = format!("{}; until then the host does not start", rabbitmq::inspect::REPAIR);
        return Finding::fail(RABBITMQ, format!("{about}: it {difference}, and sources.rabbitmq.declare is true"), fix);
    }
    if let Some(ttl) = likeness.message_ttl().filter(|ttl| *ttl < give_up_after) {
        return Finding::fail(RABBITMQ, format!("{about}; {}", too_short("x-message-ttl", ttl, give_up_after)), LONGER);
    }
    match likeness {
        Likeness::Same => Finding::ok(RABBITMQ, format!("{about}, a quorum queue with a dead-letter exchange")),
        Likeness::OtherType => {
            Finding::warn(RABBITMQ, format!("{about}: it is no quorum queue, so attempts are not counted"), again)
        }
        Likeness::NoDeadLetters => Finding::warn(
            RABBITMQ,
            format!("{about}: it has no dead-letter exchange, so what fails for good is dropped"),
            again,
        ),
        Likeness::Loses(lost) => {
            Finding::fail(RABBITMQ, format!("{about}: it loses jobs: {lost}; the host does not start"), rabbitmq::inspect::KEEP)
        }
        Likeness::Unknown => Finding::ok(RABBITMQ, format!("{about}; this user may not ask for its type")),
        Likeness::Other(problem) => Finding::ok(RABBITMQ, format!("{about}, with arguments of its own ({problem})")),
    }
}

async fn check_spool(config: &Config) -> Finding {
    if config.sources.sqs.queue_url.is_some() || config.sources.rabbitmq.broker().is_some() {
        return Finding::skip(SPOOL, "off: a queue is configured");
    }
    let settings = config.sources.spool.clone();
    let directory = settings.directory.display().to_string();
    let how = "name a directory that this user may write to (sources.spool.directory), on a disk that outlives the container";
    match aside(move || spool::inspect::inspect(&settings)).await {
        None => Finding::fail(SPOOL, "could not be looked at", "try again"),
        Some(Err(error)) => Finding::fail(SPOOL, format!("{directory}: {error}"), how),
        Some(Ok(free)) if free < LITTLE_ROOM_BYTES => Finding::warn(
            SPOOL,
            format!("{directory}: written to, {} MiB free", free >> 20),
            "make room, or name another directory (sources.spool.directory)",
        ),
        Some(Ok(free)) => Finding::ok(SPOOL, format!("{directory}: written to, {} GiB free", free >> 30)),
    }
}

fn unusable(check: &'static str, error: &ConnectError, fix: &str) -> Finding {
    Finding::fail(check, error.to_string(), fix)
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn a_delivery_limit_at_the_hosts_own_is_a_warning_and_a_short_retention_a_failure() {
        let state = |most, retention_hours: u64, dead_bytes| {
            let queue = Ok("http://queue".into());
            let redrive = sqs::inspect::Redrive { most_receives: Some(most), queue, most_bytes: dead_bytes };
            let retention_seconds = retention_hours * 3_600;
            let found = sqs::inspect::Found {
                fifo: false,
                waiting: 0,
                visibility_seconds: 30,
                retention_seconds,
                most_bytes: 1 << 20,
                redrive: Some(redrive),
            };
            judge_sqs(&found, 3, Duration::from_hours(72)).state
        };
        assert_eq!((state(3, 96, None), state(10, 96, None)), (State::Warn, State::Ok));
        let by_retention = (state(10, 72, None), state(10, 71, None));
        assert_eq!(by_retention, (State::Ok, State::Fail), "what the queue drops is never reported");
        let by_size = (state(10, 96, Some(1 << 20)), state(10, 96, Some(1 << 18)));
        assert_eq!(by_size, (State::Ok, State::Warn), "what its dead-letter queue does not take is deleted");
    }
}
