//! When a notification is tried again: exponential backoff with full jitter, unless the receiver says when.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The bounds of one delivery.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) max_attempts: u32,
    pub(super) initial_backoff: Duration,
    pub(super) max_backoff: Duration,
    pub(super) attempt_timeout: Duration,
    /// All attempts and pauses together.
    pub(super) total: Duration,
}

impl Schedule {
    /// The pause after failed attempt `attempt` (from 1): `jitter` (0 to 1) of `initial_backoff * 2^(attempt - 1)`, capped.
    ///
    /// Full jitter, <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>.
    pub(super) fn pause(&self, attempt: u32, jitter: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.initial_backoff.saturating_mul(1 << doublings).min(self.max_backoff).mul_f64(jitter)
    }
}

/// How long the receiver asks to wait: `Retry-After` in seconds or as an HTTP date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCHEDULE: Schedule = Schedule {
        max_attempts: 6,
        initial_backoff: Duration::from_millis(500),
        max_backoff: Duration::from_secs(20),
        attempt_timeout: Duration::from_secs(10),
        total: Duration::from_mins(1),
    };

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<_> = (1..=8).map(|attempt| SCHEDULE.pause(attempt, 1.0).as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 20_000, 20_000]);
    }

    proptest! {
        #[test]
        fn a_pause_is_never_longer_than_allowed(attempt: u32, jitter in 0.0..=1.0) {
            prop_assert!(SCHEDULE.pause(attempt, jitter) <= SCHEDULE.max_backoff);
        }
    }

    fn asked(value: &str) -> Option<Duration> {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:07 GMT").unwrap();
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]), now)
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(asked("120"), Some(Duration::from_mins(2)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO), "a date that has passed");
        assert_eq!(asked("-1"), None);
        assert_eq!(asked("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), SystemTime::now()), None);
    }
}
