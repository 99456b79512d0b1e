//! A look at the broker and its queue that takes no message and leaves nothing behind.

use std::time::Duration;

use super::fault::{Fault, within};
use super::settings::Settings;
use super::{connection, topology};
use crate::host::source::ConnectError;
use crate::setting::SettingError;

const TYPE: &str = "'x-queue-type'";

/// What was found of the queue.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It is not there, and the host makes it when it starts.
    ToBeMade,
    There {
        waiting: u64,
        likeness: Likeness,
    },
}

/// How the queue is, next to one that the host makes. The broker reports the first difference and no more.
#[derive(Debug, PartialEq, Eq)]
pub enum Likeness {
    /// A quorum queue with a dead-letter exchange, as the host makes it.
    Same,
    /// It does not keep its jobs; the text says when they are gone.
    Loses(&'static str),
    /// It is no quorum queue.
    OtherType,
    /// What fails for good is dropped.
    NoDeadLetters,
    /// In the broker's words.
    Other(String),
    /// This user may not ask.
    Unknown,
}

/// # Errors
/// Names the setting that is wrong, or says why the broker cannot be used.
pub async fn inspect(settings: &Settings) -> Result<Found, ConnectError> {
    settings.check()?;
    let authorities = settings.authorities()?;
    let label = format!("{} at {}:{}", settings.queue, settings.broker().unwrap_or_default(), settings.port);
    let look = async {
        let connection = connection::open(settings, authorities.as_deref()).await?;
        let channel = within(connection.create_channel()).await?;
        let waiting = match topology::depth(&channel, &settings.queue).await {
            Ok(waiting) => waiting,
            Err(fault) if settings.declare && fault.problem.starts_with("there is no queue") => return Ok(Found::ToBeMade),
            Err(fault) => return Err(fault),
        };
        let mut likeness = likeness(topology::compare(&channel, &settings.queue).await)?;
        if matches!(likeness, Likeness::NoDeadLetters | Likeness::Other(_)) {
            // The broker looks at the type last: with nothing else in the question, it is what differs.
            let channel = within(connection.create_channel()).await?;
            if let Err(fault) = topology::compare_type(&channel, &settings.queue).await
                && fault.problem.contains(TYPE)
            {
                likeness = match topology::lost_when(&fault.problem) {
                    Some(lost) => Likeness::Loses(lost),
                    None if likeness == Likeness::NoDeadLetters => Likeness::OtherType,
                    None => likeness,
                };
            }
        }
        Ok(Found::There { waiting, likeness })
    };
    Ok(look.await.map_err(|fault: Fault| fault.at(&label, "inspect"))?)
}

/// Looks whether the queue that is there keeps its jobs; with `declare`, also whether it could be one of the host's own: it would
/// connect for ever otherwise. A broker that is away is no reason not to start.
///
/// # Errors
/// Says what the queue is like, and what to do.
pub async fn check(settings: &Settings) -> Result<(), ConnectError> {
    let limit = Duration::from_millis(settings.connect_timeout_ms);
    let likeness = match tokio::time::timeout(limit, inspect(settings)).await {
        Ok(Ok(Found::There { likeness: Likeness::Loses(lost), .. })) => {
            let problem = format!("{:?} loses jobs: {lost}; {KEEP}", settings.queue);
            return Err(SettingError::new("sources.rabbitmq.queue", problem).into());
        }
        Ok(Ok(Found::There { .. })) if !settings.declare => return Ok(()),
        Ok(Ok(Found::There { likeness, .. })) => likeness,
        Ok(Err(error @ ConnectError::Setting(_))) => return Err(error),
        Ok(Ok(Found::ToBeMade) | Err(ConnectError::Source(_))) | Err(_) => return Ok(()),
    };
    let Some(difference) = likeness.difference() else { return Ok(()) };
    let problem = format!("{:?} {difference}, and sources.rabbitmq.declare: true makes another one; {REPAIR}", settings.queue);
    Err(SettingError::new("sources.rabbitmq.queue", problem).into())
}

/// What to do about a queue that is there and not as the host makes it.
pub const REPAIR: &str = "move its messages and delete it, or use it as it is with sources.rabbitmq.declare: false (docs/migrating.md has \
                          the commands of both)";

/// What to do about a queue that does not keep its jobs.
pub const KEEP: &str = "make a durable quorum queue of another name and move its publishers to it, or have it made with \
                        sources.rabbitmq.declare: true";

impl Likeness {
    /// How long the queue keeps a message, where an argument of its own says so. A policy that does cannot be seen over AMQP.
    #[must_use]
    pub fn message_ttl(&self) -> Option<Duration> {
        let Self::Other(problem) = self else { return None };
        let (_, current) = problem.split_once("'x-message-ttl'")?.1.split_once("current is the value '")?;
        Some(Duration::from_millis(current.split_once('\'')?.0.parse().ok()?))
    }

    /// How the queue differs from one that the host makes, as far as it is known.
    #[must_use]
    pub fn difference(&self) -> Option<String> {
        match self {
            Self::Same | Self::Unknown => None,
            Self::Loses(lost) => Some(format!("loses jobs: {lost}")),
            Self::OtherType => Some("is no quorum queue".into()),
            Self::NoDeadLetters => Some("has no dead-letter exchange".into()),
            Self::Other(problem) => Some(format!("has other arguments ({problem})")),
        }
    }
}

fn likeness(compared: Result<(), Fault>) -> Result<Likeness, Fault> {
    let Err(fault) = compared else { return Ok(Likeness::Same) };
    let problem = &fault.problem;
    Ok(if !fault.refused {
        return Err(fault);
    } else if problem.starts_with("ACCESS_REFUSED") {
        Likeness::Unknown
    } else if let Some(lost) = topology::lost_when(problem) {
        Likeness::Loses(lost)
    } else if problem.contains(TYPE) {
        Likeness::OtherType
    } else if problem.contains("'x-dead-letter-exchange'") && problem.contains("current is none") {
        Likeness::NoDeadLetters
    } else {
        Likeness::Other(fault.problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_reports_what_the_queue_is_like() {
        let refused = |text: &str| likeness(Err(Fault::refused(text))).unwrap();
        let differs = "PRECONDITION_FAILED - inequivalent arg";
        assert_eq!(refused(&format!("{differs} 'x-queue-type' for queue 'jobs'")), Likeness::OtherType);
        let dropped = format!("{differs} 'x-dead-letter-exchange' for queue 'jobs': received 'jobs.dlx' but current is none");
        assert_eq!(refused(&dropped), Likeness::NoDeadLetters);
        for argument in ["'durable'", "'auto_delete'", "'exclusive'"] {
            let problem = format!("{differs} {argument} for queue 'jobs' in vhost '/': received 'true' but current is 'false'");
            assert!(matches!(refused(&problem), Likeness::Loses(_)), "{problem}");
        }
        let stream =
            format!("{differs} 'x-queue-type' for queue 'jobs': received the value 'quorum' but current is the value 'stream'");
        assert!(matches!(refused(&stream), Likeness::Loses(_)));
        assert_eq!(refused("ACCESS_REFUSED - configure access to queue 'jobs'"), Likeness::Unknown);
        let limited = refused(&format!(
            "{differs} 'x-delivery-limit' for queue 'jobs' in vhost '/': received none but current is the value '3'"
        ));
        assert!(matches!(limited, Likeness::Other(_)) && limited.message_ttl().is_none());
        let expires =
            "'x-message-ttl' for queue 'jobs' in vhost '/': received none but current is the value '60000' of type 'signedint'";
        assert_eq!(refused(&format!("{differs} {expires}")).message_ttl(), Some(Duration::from_mins(1)));
        assert!(likeness(Err(Fault::unavailable("the connection broke"))).is_err());
    }
}
