//! Whether a receiver is well: one that has failed several times in a row is left alone for a while, then tried with one notification.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::pause;
use crate::clock::later;

/// The first time that a receiver is left alone.
const INITIAL_PAUSE: Duration = Duration::from_secs(1);
/// While one notification tries whether it is well again, others look as often.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Failures in a row after which it opens.
    failures: u32,
    max_pause: Duration,
}

#[derive(Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, times: u32, probing: bool },
}

impl Breaker {
    pub(super) fn new(failures: u32, max_pause: Duration) -> Self {
        Self { state: State::Closed { failures: 0 }, failures, max_pause }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// No failure is known of it.
    pub(super) fn is_well(&self) -> bool {
        matches!(self.state, State::Closed { failures: 0 })
    }

    /// Whether an attempt may be made now; it must end in [`Self::answered`], [`Self::failed`] or [`Self::abandoned`].
    ///
    /// # Errors
    /// When to ask again.
    pub(super) fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match &mut self.state {
            State::Closed { .. } => Ok(()),
            State::Open { until, .. } if now < *until => Err(until.duration_since(now)),
            State::Open { probing: true, .. } => Err(PROBE_PAUSE),
            State::Open { probing, .. } => {
                *probing = true;
                Ok(())
            }
        }
    }

    /// The receiver has answered, whatever it thought of this notification. True where that closes the breaker.
    pub(super) fn answered(&mut self) -> bool {
        let was_open = self.is_open();
        self.state = State::Closed { failures: 0 };
        was_open
    }

    /// True where that opens the breaker.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::Closed { failures } => {
                *failures += 1;
                if *failures < self.failures {
                    return false;
                }
                self.state = State::Open { until: later(now, INITIAL_PAUSE.min(self.max_pause)), times: 1, probing: false };
                true
            }
            State::Open { until, times, probing } if *probing => {
                *times = times.saturating_add(1);
                *until = later(now, pause(INITIAL_PAUSE, self.max_pause, *times));
                *probing = false;
                false
            }
            // It was under way before the breaker opened.
            State::Open { .. } => false,
        }
    }

    /// Nobody knows how it would have ended.
    pub(super) fn abandoned(&mut self) {
        if let State::Open { probing, .. } = &mut self.state {
            *probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_a_probe() {
        let mut breaker = Breaker::new(3, Duration::from_mins(1));
        let now = Instant::now();
        assert_eq!((breaker.failed(now), breaker.failed(now), breaker.answered()), (false, false, false));
        assert_eq!((breaker.failed(now), breaker.failed(now), breaker.failed(now)), (false, false, true));
        assert_eq!(breaker.admit(now), Err(INITIAL_PAUSE));
        assert!(!breaker.failed(now), "a late failure of an attempt from before");
        let mut probed = now;
        for times in 2..10 {
            probed = later(probed, Duration::from_mins(1));
            assert_eq!(breaker.admit(probed), Ok(()), "one may try");
            assert_eq!(breaker.admit(probed), Err(PROBE_PAUSE), "one alone");
            assert!(!breaker.failed(probed));
            let left = breaker.admit(probed).unwrap_err();
            assert!(left > Duration::ZERO && left <= Duration::from_mins(1), "{times}: {left:?}");
        }
        let later_still = later(probed, Duration::from_mins(1));
        assert_eq!(breaker.admit(later_still), Ok(()));
        breaker.abandoned();
        assert_eq!(breaker.admit(later_still), Ok(()), "a probe that nobody ended blocks nobody");
        assert!(breaker.answered());
        assert!(breaker.is_well() && breaker.admit(now) == Ok(()));
    }
}
