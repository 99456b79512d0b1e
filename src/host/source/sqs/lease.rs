//! How long SQS leaves a message with one receiver: 12 hours from its receipt, however often it is extended.

use std::time::Duration;

/// SQS counts from its own answer, which we see up to a poll and a time limit later: the minute covers that.
const MAX: Duration = Duration::from_mins(12 * 60 - 1);

/// From here on a message that waits is sent again rather than kept: what is left is for whoever starts its job.
const KEPT: Duration = Duration::from_hours(10);

/// Whether a message that has been in flight for so long had better be another one.
pub(super) fn is_running_out(in_flight: Duration) -> bool {
    in_flight >= KEPT
}

/// Seconds to extend a message by that has been `held` so long; none when the 12 hours are used up.
pub(super) fn extension_s(in_flight: Duration, wanted_s: u32) -> Option<u32> {
    let left_s = MAX.saturating_sub(in_flight).as_secs();
    (left_s > 0).then(|| left_s.min(wanted_s.into()) as u32)
}

/// Seconds until a message comes back that has been `held` so long: `delay` in full seconds, or what the 12 hours leave.
pub(super) fn delay_s(in_flight: Duration, delay: Duration) -> u32 {
    let whole = delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0));
    whole.min(MAX.saturating_sub(in_flight).as_secs()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hours(hours: f64) -> Duration {
        Duration::from_secs_f64(hours * 3_600.0)
    }

    #[test]
    fn an_extension_ends_at_the_twelve_hours() {
        assert_eq!(extension_s(Duration::ZERO, 120), Some(120));
        assert_eq!(extension_s(hours(11.9), 120), Some(120));
        assert_eq!(extension_s(Duration::from_secs(43_110), 120), Some(30));
        assert_eq!(extension_s(MAX, 120), None);
        assert_eq!(extension_s(hours(13.0), 120), None);
        assert!(!is_running_out(hours(9.9)) && is_running_out(hours(10.0)));
    }

    #[test]
    fn a_delay_is_rounded_up_and_capped() {
        assert_eq!(delay_s(Duration::ZERO, Duration::ZERO), 0);
        assert_eq!(delay_s(Duration::ZERO, Duration::from_millis(1_500)), 2);
        assert_eq!(delay_s(hours(11.0), hours(2.0)), 3_540);
        assert_eq!(delay_s(hours(13.0), hours(2.0)), 0);
        assert_eq!(delay_s(Duration::ZERO, Duration::MAX), 43_140);
    }

    proptest! {
        #[test]
        fn no_request_goes_beyond_what_sqs_allows(in_flight_s in 0_u64..50_000, wanted_s in 1_u32..=43_200, delay_s_wanted: u32) {
            let in_flight = Duration::from_secs(in_flight_s);
            for asked in [extension_s(in_flight, wanted_s).unwrap_or(0), delay_s(in_flight, Duration::from_secs(delay_s_wanted.into()))] {
                prop_assert!(asked == 0 || in_flight_s + u64::from(asked) <= 43_140);
            }
        }
    }
}
