//! Why a message waits that is no attempt the worse for it, and since when: what a queue keeps of it while it waits.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock::later;

/// The attribute of an SQS message in which a host keeps [`Kept`], as JSON.
pub const SQS_ATTRIBUTE: &str = "atelier-deferred";

/// Why a message waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeferReason {
    /// Its job runs already.
    Running,
    /// All handlers of its model are busy, and those of another model idle.
    ModelBusy,
    /// The store cannot be asked, or written to: the job goes on when it can.
    StoreUnavailable,
    /// The moderator gives no answer: the job goes on when it does.
    ModerationUnavailable,
    /// A step of the user's own gives no answer: the job goes on when it does.
    StepUnavailable,
    /// As `StoreUnavailable`, after its images were made: they wait on the disk of the host that made them.
    ResultHeld,
    /// Its job has ended, and its caller could not be notified yet.
    NotificationUndelivered,
    /// Its job failed as often as it may, and the store could not be asked for its record: it is not started again.
    EndUnknown,
}

impl DeferReason {
    pub const ALL: [Self; 8] = [
        Self::Running,
        Self::ModelBusy,
        Self::StoreUnavailable,
        Self::ModerationUnavailable,
        Self::StepUnavailable,
        Self::ResultHeld,
        Self::NotificationUndelivered,
        Self::EndUnknown,
    ];

    /// One word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::ModelBusy => "model_busy",
            Self::StoreUnavailable => "store_unavailable",
            Self::ModerationUnavailable => "moderation_unavailable",
            Self::StepUnavailable => "step_unavailable",
            Self::ResultHeld => "result_held",
            Self::NotificationUndelivered => "notification_undelivered",
            Self::EndUnknown => "end_unknown",
        }
    }

    /// One letter for names that have no room for a word.
    #[must_use]
    pub fn to_char(self) -> char {
        match self {
            Self::Running => 'r',
            Self::ModelBusy => 'b',
            Self::StoreUnavailable => 's',
            Self::ModerationUnavailable => 'm',
            Self::StepUnavailable => 'u',
            Self::ResultHeld => 'h',
            Self::NotificationUndelivered => 'n',
            Self::EndUnknown => 'e',
        }
    }

    #[must_use]
    pub fn of_char(char: char) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.to_char() == char)
    }
}

/// A reason with the moment from which on it has been one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deferral {
    pub reason: DeferReason,
    /// Seconds since 1970-01-01T00:00:00Z.
    since_s: u64,
}

impl Deferral {
    #[must_use]
    pub fn new(reason: DeferReason, since: SystemTime) -> Self {
        Self { reason, since_s: since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() }
    }

    /// Of a message that waits on: where it waited for the same reason, it has done so since then.
    #[must_use]
    pub fn next(before: Option<Self>, reason: DeferReason, now: SystemTime) -> Self {
        before.filter(|before| before.reason == reason).unwrap_or_else(|| Self::new(reason, now))
    }

    #[must_use]
    pub fn since(self) -> SystemTime {
        later(SystemTime::UNIX_EPOCH, Duration::from_secs(self.since_s))
    }

    /// How long it has waited; nothing where a clock was set back meanwhile.
    #[must_use]
    pub fn waited(self, now: SystemTime) -> Duration {
        now.duration_since(self.since()).unwrap_or_default()
    }
}

impl fmt::Display for Deferral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.reason.as_str(), self.since_s)
    }
}

/// A text that is no deferral: a stranger may write whatever it likes where a host writes one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no deferral")]
pub struct NoDeferral;

impl FromStr for Deferral {
    type Err = NoDeferral;

    fn from_str(text: &str) -> Result<Self, NoDeferral> {
        let (word, since) = text.split_once('@').ok_or(NoDeferral)?;
        let reason = DeferReason::ALL.into_iter().find(|reason| reason.as_str() == word).ok_or(NoDeferral)?;
        Ok(Self { reason, since_s: since.parse().map_err(|_| NoDeferral)? })
    }
}

/// What the copy of an SQS message says of the message that it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Attempts before this copy; SQS counts its receipts from 0.
    pub attempts: u32,
    /// [`Deferral`] as text.
    pub deferral: String,
    /// The id of the message that was received first.
    pub message_id: String,
}

impl Kept {
    /// None: nothing a host has written.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    #[must_use]
    pub fn deferral(&self) -> Option<Deferral> {
        self.deferral.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_deferral_survives_as_text_and_strangers_texts_are_none() {
        for reason in DeferReason::ALL {
            let deferral = Deferral::new(reason, at(1_795_300_000));
            assert_eq!(deferral.to_string().parse(), Ok(deferral));
            assert_eq!(DeferReason::of_char(reason.to_char()), Some(reason));
        }
        for other in ["", "running", "running@", "running@-1", "walking@1", "running@99999999999999999999"] {
            assert_eq!(other.parse::<Deferral>(), Err(NoDeferral), "{other:?}");
        }
        let far: Deferral = format!("running@{}", u64::MAX).parse().unwrap();
        assert_eq!(far.waited(at(5)), Duration::ZERO, "no clock is so far ahead");
    }

    #[test]
    fn it_lasts_for_as_long_as_the_reason_is_the_same() {
        let first = Deferral::next(None, DeferReason::StoreUnavailable, at(100));
        let second = Deferral::next(Some(first), DeferReason::StoreUnavailable, at(700));
        assert_eq!((second.since(), second.waited(at(760))), (at(100), Duration::from_mins(11)));
        let other = Deferral::next(Some(second), DeferReason::NotificationUndelivered, at(800));
        assert_eq!((other.since(), other.waited(at(10))), (at(800), Duration::ZERO));
    }

    #[test]
    fn what_a_copy_says_is_read_back() {
        let kept = Kept { attempts: 2, deferral: "end_unknown@7".into(), message_id: "m-1".into() };
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(Kept::decode(&text).as_ref(), Some(&kept));
        assert_eq!(kept.deferral(), Some(Deferral::new(DeferReason::EndUnknown, at(7))));
        for other in ["", "{}", "7", r#"{"attempts": -1}"#] {
            assert_eq!(Kept::decode(other), None);
        }
    }
}
