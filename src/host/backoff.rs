//! Pauses that double, with jitter, up to a longest one.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempt: u32,
}

impl Backoff {
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempt: 0 }
    }

    /// The next pause; each is up to twice as long as the one before.
    pub fn next_pause(&mut self) -> Duration {
        self.attempt = self.attempt.saturating_add(1);
        pause(self.first, self.longest, self.attempt, rand::random())
    }

    /// After a success the next pause is the first one again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// The pause after failure number `attempt` (counted from 1): between half and all of `first` doubled each time, at most
/// `longest`. `jitter`: 0 to 1.
#[must_use]
pub fn pause(first: Duration, longest: Duration, attempt: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)));
    doubled.min(longest).mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(10));
        let pauses = |jitter| (1..=6).map(|attempt| pause(first, longest, attempt, jitter).as_millis()).collect::<Vec<_>>();
        assert_eq!(pauses(1.0), [1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(pauses(0.0), [500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        assert_eq!(pause(first, longest, u32::MAX, 1.0), longest);
    }
}
