//! What can stop a job from outside: its invocation's deadline, the end of the process, and a request to cancel it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::clock::later;
use crate::job::JobId;
use crate::job::outcome::JobError;

/// Deadlines further away than this, to either side, are no deadlines: some hosts send a constant in 1970.
const BELIEVABLE: Duration = Duration::from_hours(24);
/// What an invocation without a deadline has for its last words.
const DEFAULT_MARGIN: Duration = Duration::from_secs(5);

/// The limits of one invocation, and who delivers its notifications.
#[derive(Debug, Clone)]
pub struct Control {
    deadline: Option<Instant>,
    margin: Duration,
    shutdown: Shutdown,
    cancelled: Option<Cancelled>,
    notification_mode: NotificationMode,
}

/// Who delivers the terminal notifications of an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotificationMode {
    /// The invocation itself, before it is answered.
    Now,
    /// The receiver of its answer: the notifications are in it.
    Later,
}

/// Announces to everything in the process that it is to end, and when.
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

    /// Resolves when the end was announced, with the moment it comes; never where no one can announce it.
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

/// Names the jobs that are to be cancelled.
#[derive(Debug)]
pub struct Cancels(watch::Sender<BTreeSet<String>>);

/// The other end of [`Cancels`].
#[derive(Debug, Clone)]
pub struct Cancelled(watch::Receiver<BTreeSet<String>>);

impl Cancels {
    #[must_use]
    pub fn channel() -> (Self, Cancelled) {
        let (sender, cancelled) = watch::channel(BTreeSet::new());
        (Self(sender), Cancelled(cancelled))
    }

    /// The job of this id stops before its next denoising step, or as soon as it is started.
    pub fn cancel(&self, job_id: &str) {
        self.0.send_if_modified(|ids| ids.insert(job_id.to_owned()));
    }

    /// Forgets all: what was meant for one invocation must not reach the next, which may bring the same job again.
    pub fn forget(&self) {
        self.0.send_modify(BTreeSet::clear);
    }
}

impl Cancelled {
    async fn names(&self, job_id: &JobId) {
        let mut ids = self.0.clone();
        if ids.wait_for(|ids| ids.contains(job_id.as_str())).await.is_err() {
            std::future::pending::<()>().await;
        }
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
        Self { deadline: believable.then(|| later(Instant::now(), left)), margin, ..Self::unlimited(shutdown) }
    }

    /// Without a deadline.
    #[must_use]
    pub fn unlimited(shutdown: Shutdown) -> Self {
        Self { deadline: None, margin: DEFAULT_MARGIN, shutdown, cancelled: None, notification_mode: NotificationMode::Now }
    }

    /// Its jobs can be cancelled one by one.
    #[must_use]
    pub fn cancellable(self, cancelled: Cancelled) -> Self {
        Self { cancelled: Some(cancelled), ..self }
    }

    #[must_use]
    pub fn notification_mode_by(self, notification_mode: NotificationMode) -> Self {
        Self { notification_mode, ..self }
    }

    #[must_use]
    pub fn notification_mode(&self) -> NotificationMode {
        self.notification_mode
    }

    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.shutdown.is_announced()
    }

    /// Resolves when the job is to be stopped, with the reason; never if nothing stops it.
    pub async fn stopped(&self, job_id: &JobId) -> JobError {
        let cancelled = async {
            match &self.cancelled {
                Some(cancelled) => cancelled.names(job_id).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = self.time_is_up(Duration::ZERO) => error,
            () = cancelled => JobError::Cancelled,
        }
    }

    /// Resolves when not even a last word can be said any more: three quarters of the margin after the stop. What is left
    /// is for the reply.
    pub async fn over(&self) -> JobError {
        self.time_is_up(self.margin.mul_f32(0.75)).await
    }

    async fn time_is_up(&self, after: Duration) -> JobError {
        let deadline = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline + after).await,
                None => std::future::pending().await,
            }
        };
        let shutdown = async { sleep_until(self.shutdown.announced().await + after).await };
        tokio::select! {
            () = deadline => JobError::DeadlineExceeded,
            () = shutdown => JobError::ShuttingDown,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn in_ms(offset_ms: i64) -> u64 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
        (now + offset_ms) as u64
    }

    fn control(deadline_ms: u64) -> Control {
        Control::new(deadline_ms, Duration::from_millis(100), Shutdown::channel().1)
    }

    fn job() -> JobId {
        JobId::new("job-1").unwrap()
    }

    #[tokio::test]
    async fn stops_a_margin_before_the_deadline() {
        let control = control(in_ms(150));
        let started = Instant::now();
        assert!(matches!(control.stopped(&job()).await, JobError::DeadlineExceeded));
        assert!(started.elapsed() < Duration::from_millis(140), "took {:?}", started.elapsed());
    }

    #[tokio::test]
    async fn the_last_word_has_three_quarters_of_the_margin() {
        let started = Instant::now();
        assert!(matches!(control(in_ms(150)).over().await, JobError::DeadlineExceeded));
        assert!(
            (Duration::from_millis(120)..Duration::from_millis(148)).contains(&started.elapsed()),
            "{:?}",
            started.elapsed()
        );
        let (switch, shutdown) = Shutdown::channel();
        switch.send(Some(Instant::now())).unwrap();
        let control = Control::new(0, Duration::from_mins(1), shutdown);
        assert!(matches!(control.stopped(&job()).await, JobError::ShuttingDown));
        assert!(control.over().now_or_never().is_none(), "there is time to notify the caller");
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
        assert!(matches!(control.stopped(&job()).await, JobError::ShuttingDown));
        assert!(control.is_shutting_down());
    }

    #[test]
    fn a_cancel_reaches_its_own_job_alone() {
        let (cancels, cancelled) = Cancels::channel();
        let control = Control::unlimited(Shutdown::channel().1).cancellable(cancelled);
        cancels.cancel("job-2");
        assert!(control.stopped(&job()).now_or_never().is_none(), "another job's cancel");
        cancels.cancel("job-1");
        assert!(matches!(control.stopped(&job()).now_or_never(), Some(JobError::Cancelled)));
        cancels.forget();
        assert!(control.stopped(&job()).now_or_never().is_none(), "the next invocation of the same job");
    }
}
