//! A job's file name in the spool: all that the spool knows of it besides its body.

use std::fmt;
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use crate::job::trace::Trace;

/// The ending of a file that is being written. No job's name ends in it.
pub(super) const PARTIAL: &str = ".partial";

/// `{due_ms}~{sent_ms}~{attempt}~{unique}~{job_id}`: names in order are jobs in the order they are due. A job's trace follows
/// `unique` after a `+`, and counts into it where an earlier release reads the name. A job id that ends as a file does that is being written is followed by a `~`.
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
    pub(super) job_id: String,
}

impl Name {
    pub(super) fn new(job_id: &str, trace: Option<Trace>, now: SystemTime) -> Self {
        let now_ms = ms(now);
        let unique = Uuid::now_v7().simple().to_string();
        Self { due_ms: now_ms, sent_ms: now_ms, attempt: 0, unique, trace, job_id: job_id.to_owned() }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(5, '~');
        let due_ms = parts.next()?.parse().ok()?;
        let sent_ms = parts.next()?.parse().ok()?;
        let attempt = parts.next()?.parse().ok()?;
        let unique = parts.next()?;
        let traced = unique.split_once('+').and_then(|(unique, trace)| Some((unique, Trace::from_traceparent(trace)?)));
        let name = Self {
            due_ms,
            sent_ms,
            attempt,
            unique: traced.map_or(unique, |(unique, _)| unique).to_owned(),
            trace: traced.map(|(_, trace)| trace),
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
        write!(f, "{:013}~{:013}~{}~{}", self.due_ms, self.sent_ms, self.attempt, self.unique)?;
        if let Some(trace) = self.trace {
            write!(f, "+{trace}")?;
        }
        write!(f, "~{}", self.job_id)?;
        if self.job_id.ends_with(PARTIAL) { f.write_str("~") } else { Ok(()) }
    }
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
        let odd = "0000000000001~0000000000001~0~a+b~job";
        assert_eq!(Name::parse(odd).unwrap().unique, "a+b");
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
