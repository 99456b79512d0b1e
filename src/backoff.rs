//! Pauses that double, with jitter, up to a max one: for everything here that is tried again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Doublings after which any first pause has become the max.
const MAX_DOUBLINGS: u32 = 64;

/// The pauses between attempts, one after the other.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    pauses: ExponentialBackoff,
    max: Duration,
}

impl Backoff {
    /// `first`: the first pause at most; `max`: any pause at most.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        // backon lengthens a pause by up to itself, and the settings name upper bounds: so it gets half of them.
        let builder = ExponentialBuilder::new()
            .with_min_delay(first.min(max) / 2)
            .with_max_delay(max / 2)
            .with_jitter()
            .without_max_times();
        Self { builder, pauses: builder.build(), max }
    }

    /// The next pause; each is up to twice as long as the one before.
    pub fn next_pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.max)
    }

    /// After a success the next pause is the first one again.
    pub fn reset(&mut self) {
        self.pauses = self.builder.build();
    }
}

/// The pause after failure number `attempt` (counted from 1), for what is not there in between: between half and all of
/// `first` doubled each time, at most `max`.
#[must_use]
pub fn pause(first: Duration, max: Duration, attempt: u32) -> Duration {
    let mut backoff = Backoff::new(first, max);
    let earlier = attempt.saturating_sub(1).min(MAX_DOUBLINGS) as usize;
    backoff.pauses.nth(earlier).unwrap_or(max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for _ in 0..2 {
            for most_ms in [1_000, 2_000, 4_000, 8_000, 10_000, 10_000] {
                let pause_ms = backoff.next_pause().as_millis();
                assert!((most_ms / 2..=most_ms).contains(&pause_ms), "{pause_ms} of {most_ms}");
            }
            backoff.reset();
        }
    }

    #[test]
    fn pauses_differ() {
        let pauses: Vec<_> = (0..8).map(|_| pause(Duration::from_mins(1), Duration::from_hours(1), 1)).collect();
        assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{pauses:?}");
    }

    proptest! {
        #[test]
        fn a_pause_is_never_longer_than_allowed(first_ms in 0..u64::from(u32::MAX), longest_ms: u32, attempt: u32) {
            let max = Duration::from_millis(longest_ms.into());
            let pause = pause(Duration::from_millis(first_ms), max, attempt);
            prop_assert!(pause <= max);
            prop_assert!(attempt < 34 || first_ms == 0 || pause >= max / 2);
        }
    }
}
