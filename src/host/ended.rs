//! A job that has ended and whose caller has not heard of it yet: what its message carries while that waits.

use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::job::outcome::{JobError, Problem};
use crate::shown;

/// Of a problem's text. All of it must fit into a header of AMQP and an attribute of SQS.
const MAX_PROBLEM_CHARS: usize = 1_000;
/// No host is away for longer.
const MAX_ABSENCE: Duration = Duration::from_hours(60 * 24);
/// A job has three notifications at most.
const MAX_DELIVERED: usize = 8;

/// How a job ended, and how far its notifications are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndedJob {
    pub end: End,
    /// Which delivery of the message it was that ended it, counted from 1.
    pub attempt: u32,
    /// Why there are no images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// `webhook-id`s of the notifications that were taken.
    #[serde(default)]
    pub delivered: Vec<String>,
    /// Its failure is noted in the bucket, under the message's identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noted: bool,
    /// Rounds of attempts to deliver.
    pub rounds: u32,
    /// Milliseconds since the job ended, as far as hosts have seen them pass, on clocks that nobody sets.
    pub waited_ms: u64,
    /// Until then a record of it may appear that a handler was storing when it died.
    #[serde(skip)]
    pub record_until: Option<Instant>,
    /// Seconds since 1970-01-01T00:00:00Z when it ended, or was asked for again: time without any host counts as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_s: Option<u64>,
}

/// How a job ended, and so what becomes of its message once its caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Its record is stored.
    Complete,
    /// No repetition helps.
    Failed,
    /// As `Failed`, and the message is kept with the dead letters.
    DeadLetter,
}

impl EndedJob {
    #[must_use]
    pub fn complete(attempt: u32) -> Self {
        Self {
            end: End::Complete,
            attempt,
            problem: None,
            delivered: Vec::new(),
            noted: false,
            rounds: 0,
            waited_ms: 0,
            record_until: None,
            ended_s: None,
        }
    }

    #[must_use]
    pub fn failed(end: End, attempt: u32, problem: Problem) -> Self {
        Self { end, problem: Some(problem), ..Self::complete(attempt) }
    }

    /// As it travels with a message.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut carried = self.clone();
        if let Some(problem) = &mut carried.problem {
            problem.message = shown::clipped(std::mem::take(&mut problem.message), MAX_PROBLEM_CHARS);
        }
        carried.delivered.truncate(MAX_DELIVERED);
        serde_json::to_string(&carried).unwrap_or_default()
    }

    /// None for what is not ours, or of a release that writes it otherwise: then the job is run, and a record ends it.
    #[must_use]
    pub fn decode(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    pub fn waited(&mut self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.waited_ms = self.waited_ms.saturating_add(ms);
    }

    /// As it is when somebody wants it to be sent again after all.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self { rounds: 0, waited_ms: 0, ended_s: None, ..self.clone() }
    }

    /// It ended then, unless it is known already when it did.
    pub fn since(&mut self, moment: SystemTime) {
        self.ended_s.get_or_insert(moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs());
    }

    /// How long ago it ended. A clock that says months has been set since then, or was not set before: it counts no more than what
    /// hosts have seen pass.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Duration {
        let seen = Duration::from_millis(self.waited_ms);
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let passed = self.ended_s.and_then(|ended_s| now.checked_sub(Duration::from_secs(ended_s))).unwrap_or_default();
        if passed.saturating_sub(seen) > MAX_ABSENCE { seen } else { seen.max(passed) }
    }

    /// What its caller is told, where it failed.
    #[must_use]
    pub fn problem(&self) -> Problem {
        self.problem.clone().unwrap_or_else(|| Problem::from(&JobError::Internal { problem: "the job failed".into() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_carries_is_read_as_it_was_written_and_small() {
        let problem = Problem {
            code: "invalid_input".into(),
            message: "\u{1}".repeat(100_000),
            field: Some("steps".into()),
            category: None,
        };
        let mut ended = EndedJob::failed(End::DeadLetter, 3, problem);
        ended.waited(Duration::MAX);
        ended.delivered = vec!["msg_0123456789abcdef0123456789abcdef".into(); 100];
        let text = ended.encode();
        assert!(text.len() < 8_000, "{} bytes", text.len());
        let read = EndedJob::decode(text.as_bytes()).unwrap();
        assert_eq!((read.end, read.attempt, read.waited_ms), (End::DeadLetter, 3, u64::MAX));
        assert_eq!(EndedJob::decode(EndedJob::complete(1).encode().as_bytes()), Some(EndedJob::complete(1)));
        for other in [&b"{}"[..], b"", b"[1]", b"\xff", br#"{"end":"sometime","attempt":1,"rounds":0,"waited_ms":0}"#] {
            assert_eq!(EndedJob::decode(other), None);
        }
    }

    #[test]
    fn time_without_a_host_counts_unless_a_clock_was_set() {
        let at = |hours: u64| SystemTime::UNIX_EPOCH + Duration::from_hours(500_000 + hours);
        let mut ended = EndedJob::complete(1);
        assert_eq!(ended.age(at(0)), Duration::ZERO, "nobody knows when it ended");
        ended.since(at(0));
        ended.since(at(50));
        ended.waited(Duration::from_hours(2));
        for (now, hours) in [(1, 2), (72, 72), (24 * 60, 24 * 60), (24 * 365 * 10, 2)] {
            assert_eq!(ended.age(at(now)), Duration::from_hours(hours), "{now}");
        }
        assert_eq!(ended.age(SystemTime::UNIX_EPOCH), Duration::from_hours(2), "a clock that was set back");
        assert_eq!(EndedJob::decode(ended.encode().as_bytes()), Some(ended.clone()));
        assert_eq!(ended.anew().age(at(72)), Duration::ZERO);
    }
}
