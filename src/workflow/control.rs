//! What can stop a job from outside: its invocation's deadline and the end of the process.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::job::outcome::JobError;

/// Deadlines further away than this, to either side, are no deadlines: some hosts send a constant in 1970.
const BELIEVABLE: Duration = Duration::from_hours(24);

/// The limits of one invocation.
#[derive(Debug, Clone)]
pub struct Control {
    deadline: Option<Instant>,
    shutdown: Shutdown,
}

/// Tells everything in the process that it is to end, and when.
#[derive(Debug, Clone)]
pub struct Shutdown {
    end: watch::Receiver<Option<Instant>>,
}

impl Shutdown {
    /// The switch and the wire: what is sent is the moment at which running work is handed back.
    #[must_use]
    pub fn channel() -> (watch::Sender<Option<Instant>>, Self) {
        let (sender, end) = watch::channel(None);
        (sender, Self { end })
    }

    /// Resolves when the end was announced, with the moment it comes; never where nobody can announce it.
    pub async fn announced(&self) -> Instant {
        let mut end = self.end.clone();
        let announced = end.wait_for(Option::is_some).await.ok().and_then(|end| *end);
        match announced {
            Some(end) => end,
            None => std::future::pending().await,
        }
    }

    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.end.borrow().is_some()
    }
}

impl Control {
    /// `deadline_ms`: milliseconds since 1970-01-01T00:00:00Z, as the Runtime API sends it; work stops `margin` before it.
    #[must_use]
    pub fn new(deadline_ms: u64, margin: Duration, shutdown: Shutdown) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let deadline = Duration::from_millis(deadline_ms);
        let believable = deadline.abs_diff(now) <= BELIEVABLE;
        let left = deadline.saturating_sub(now).saturating_sub(margin);
        Self { deadline: believable.then(|| Instant::now() + left), shutdown }
    }

    /// Without a deadline.
    #[must_use]
    pub fn unlimited(shutdown: Shutdown) -> Self {
        Self { deadline: None, shutdown }
    }

    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.shutdown.is_announced()
    }

    /// Resolves when the job is to be stopped, with the reason; never if nothing stops it.
    pub async fn stopped(&self) -> JobError {
        let deadline = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let shutdown = async { sleep_until(self.shutdown.announced().await).await };
        tokio::select! {
            () = deadline => JobError::OutOfTime,
            () = shutdown => JobError::ShuttingDown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_ms(offset_ms: i64) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
        (now + offset_ms) as u64
    }

    fn control(deadline_ms: u64) -> Control {
        Control::new(deadline_ms, Duration::from_millis(100), Shutdown::channel().1)
    }

    #[tokio::test]
    async fn stops_a_margin_before_the_deadline() {
        let control = control(in_ms(150));
        let started = Instant::now();
        assert!(matches!(control.stopped().await, JobError::OutOfTime));
        assert!(started.elapsed() < Duration::from_millis(140), "took {:?}", started.elapsed());
    }

    #[test]
    fn absurd_deadlines_are_none() {
        for absurd in [0, 600_000, in_ms(-90_000_000), in_ms(90_000_000), u64::MAX] {
            assert_eq!(control(absurd).deadline, None, "{absurd}");
        }
        assert!(control(in_ms(-1_000)).deadline.is_some(), "a deadline just missed is a deadline");
    }

    #[tokio::test]
    async fn shutdown_hands_back_after_the_grace() {
        let (switch, shutdown) = Shutdown::channel();
        let control = Control::unlimited(shutdown);
        assert!(!control.is_shutting_down());
        switch.send(Some(Instant::now() + Duration::from_millis(20))).unwrap();
        assert!(matches!(control.stopped().await, JobError::ShuttingDown));
        assert!(control.is_shutting_down());
    }
}
