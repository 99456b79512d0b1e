//! Moments in the future that cannot overflow, whatever number a caller, a server or a setting has chosen.

use std::ops::Add;
use std::time::Duration;

/// Longer than anything is waited for, and short enough for every clock: a hundred years.
pub const FAR: Duration = Duration::from_hours(100 * 365 * 24);

/// `moment`, later by `pause` or by [`FAR`], whichever is shorter. For `Instant` and `SystemTime` of now or the past.
#[must_use]
pub fn later<T: Add<Duration, Output = T>>(moment: T, pause: Duration) -> T {
    moment + pause.min(FAR)
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::*;

    #[test]
    fn the_longest_pause_is_far_away_and_no_panic() {
        let now = Instant::now();
        assert_eq!(later(now, Duration::MAX), now + FAR);
        assert_eq!(later(now, Duration::from_secs(u64::MAX)), now + FAR);
        assert_eq!(later(SystemTime::UNIX_EPOCH, Duration::MAX), SystemTime::UNIX_EPOCH + FAR);
        assert_eq!(later(tokio::time::Instant::from_std(now), Duration::MAX).into_std(), now + FAR);
        assert_eq!(later(now, Duration::from_secs(7)), now + Duration::from_secs(7));
    }
}
