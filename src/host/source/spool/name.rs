//! A job's file name in the spool: all that the spool knows of it besides its body.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::clock::later;
use crate::job::trace::Trace;
use crate::protocol::deferral::{DeferReason, Deferral};

/// The ending of a file that is being written. No job's name ends in it.
pub(super) const PARTIAL: &str = ".partial";
/// What file systems take.
const MAX_NAME_BYTES: usize = 255;

/// `{due_ms}~{sent_ms}~{attempt}~{unique}~{job_id}`: names in order are jobs in the order they are due. A job's trace follows
/// `unique` after a `+`, and after another one why it waits (a letter, the minute in base 36). Both count into `unique` where an
/// earlier release reads the name. A job id that ends as a file does that is being written is followed by a `~`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// Milliseconds since 1970-01-01T00:00:00Z; not to be started before.
    due_ms: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub(super) sent_ms: u64,
    /// Deliveries so far.
    pub(super) attempt: u32,
    /// Distinguishes two deliveries of one job id.
    pub(super) unique: String,
    pub(super) trace: Option<Trace>,
    /// To the minute. Left out where the name would be too long.
    pub(super) deferral: Option<Deferral>,
    pub(super) job_id: String,
}

impl Name {
    pub(super) fn new(job_id: &str, trace: Option<Trace>, now: SystemTime) -> Self {
        let now_ms = ms(now);
        let unique = Uuid::now_v7().simple().to_string();
        Self { due_ms: now_ms, sent_ms: now_ms, attempt: 0, unique, trace, deferral: None, job_id: job_id.to_owned() }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '~');
        let due_ms = parts.next()?.parse().ok()?;
        let sent_ms = parts.next()?.parse().ok()?;
        let attempt = parts.next()?.parse().ok()?;
        let unique = parts.next()?;
        let deferred = unique.rsplit_once('+').and_then(|(unique, text)| Some((unique, deferral(text)?)));
        let unique = deferred.map_or(unique, |(unique, _)| unique);
        let traced = unique.split_once('+').and_then(|(unique, trace)| Some((unique, Trace::from_traceparent(trace)?)));
        let name = Self {
            due_ms,
            sent_ms,
            attempt,
            unique: traced.map_or(unique, |(unique, _)| unique).to_owned(),
            trace: traced.map(|(_, trace)| trace),
            deferral: deferred.map(|(_, deferral)| deferral),
            job_id: parts.next()?.trim_end_matches('~').to_owned(),
        };
        // A file that is named otherwise is not ours, even if it could be read.
        (name.to_string() == text).then_some(name)
    }

    pub(super) fn due(&mut self, at: SystemTime) {
        self.due_ms = ms(at);
    }

    /// Nothing where the job was sent later than `now`: then the clock was set back, and says nothing of when it is due. Never
    /// more than `max`, the longest pause there is: then the clock was ahead when the name was written.
    pub(super) fn due_in(&self, now: SystemTime, max: Duration) -> Duration {
        let now_ms = ms(now);
        if self.sent_ms > now_ms { Duration::ZERO } else { Duration::from_millis(self.due_ms.saturating_sub(now_ms)).min(max) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{:013}~{:013}~{}~{}", self.due_ms, self.sent_ms, self.attempt, self.unique);
        if let Some(trace) = self.trace {
            write!(text, "+{trace}")?;
        }
        let close = if self.job_id.ends_with(PARTIAL) { "~" } else { "" };
        let end = format!("~{}{close}", self.job_id);
        let deferred = self.deferral.map(|deferral| format!("+{}", label(deferral)));
        if let Some(deferred) = deferred.filter(|deferred| text.len() + deferred.len() + end.len() <= MAX_NAME_BYTES) {
            text += &deferred;
        }
        write!(f, "{text}{end}")
    }
}

/// The reason's letter, the minute from which on in base 36.
fn label(deferral: Deferral) -> String {
    let mut minutes = deferral.since().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 60;
    let mut digits = Vec::new();
    while minutes > 0 || digits.is_empty() {
        digits.extend(char::from_digit((minutes % 36) as u32, 36));
        minutes /= 36;
    }
    format!("{}{}", deferral.reason.to_char(), digits.into_iter().rev().collect::<String>())
}

fn deferral(label: &str) -> Option<Deferral> {
    let mut letters = label.chars();
    let reason = DeferReason::of_char(letters.next()?)?;
    let minutes = u64::from_str_radix(letters.as_str(), 36).ok()?;
    let since = later(SystemTime::UNIX_EPOCH, Duration::from_secs(minutes.saturating_mul(60)));
    // Written in one way only.
    let deferral = Deferral::new(reason, since);
    (self::label(deferral) == label).then_some(deferral)
}

fn ms(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_disk_and_sort_by_when_they_are_due() {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let early = Name::new("b.job-1_x", None, at(1_000));
        let mut late = Name::new("a", None, at(1_000));
        late.due(at(2_000));
        assert_eq!(Name::parse(&early.to_string()), Some(early.clone()));
        assert!(early < late && early.to_string() < late.to_string());
        let max = Duration::from_mins(10);
        assert_eq!(late.due_in(at(1_500), max), Duration::from_secs(500));
        assert_eq!(late.due_in(at(3_000), max), Duration::ZERO);
        assert_eq!(late.due_in(at(500), max), Duration::ZERO, "the clock was set back");
        late.due(at(1_000 + 10 * 365 * 86_400));
        assert_eq!(late.due_in(at(1_500), max), max, "the clock was ahead when the retry was written");
    }

    #[test]
    fn a_trace_survives_the_disk_within_the_longest_name() {
        let trace = Trace::from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let traced = Name::new(&"j".repeat(128), trace, SystemTime::now());
        assert_eq!(Name::parse(&traced.to_string()), Some(traced.clone()));
        assert!(traced.to_string().len() <= 250, "file systems take 255 bytes");
        for odd in ["a+b", "a+", "a+z1", "a+r01", "a+r", "a+rZ"] {
            assert_eq!(Name::parse(&format!("0000000000001~0000000000001~0~{odd}~job")).unwrap().unique, odd);
        }
    }

    #[test]
    fn why_a_job_waits_survives_the_disk_within_the_longest_name() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_mins(29_921_667);
        let trace = Trace::from_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        for (id, trace, attempt) in [("job-1", None, 0), (&*"j".repeat(128), trace, 12), ("job.partial", trace, 3)] {
            let deferral = Some(Deferral::new(DeferReason::StoreUnavailable, now));
            let name = Name { attempt, deferral, ..Name::new(id, trace, now) };
            assert_eq!(Name::parse(&name.to_string()), Some(name.clone()));
            assert!(name.to_string().len() <= MAX_NAME_BYTES);
        }
        let deferral = Some(Deferral::new(DeferReason::Running, now));
        let long = Name { attempt: 1_000, deferral, ..Name::new(&"j".repeat(128), trace, now) };
        let read = Name::parse(&long.to_string()).unwrap();
        assert_eq!((read.attempt, read.deferral, read.trace), (1_000, None, trace), "there is no room for it");
    }

    #[test]
    fn a_file_that_is_being_written_is_no_job_whatever_its_job_is_called() {
        let now = SystemTime::now();
        for id in ["job-1", "job.partial", ".partial", "a.partial.partial"] {
            let name = Name::new(id, None, now);
            assert_eq!(Name::parse(&name.to_string()), Some(name.clone()));
            assert!(!name.to_string().ends_with(PARTIAL));
            assert_eq!(Name::parse(&format!("{name}{PARTIAL}")), None, "{id}");
        }
    }

    #[test]
    fn other_files_are_not_ours() {
        for other in ["", ".gitkeep", "1~2~3~4", "x~2~3~u~j", "1~2~3~u~j", "lost+found"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }
}
