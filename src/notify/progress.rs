//! Progress notices: sent from the background, dropped rather than waited for, and never after the terminal notice.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::body::Progressed;
use super::delivery::{Notice, Setback, Target};
use super::{Kind, Notifier, webhook_id};
use crate::job::Job;

/// More than a job has to say; what does not fit is dropped.
const WAITING_MOST: usize = 8;

/// One job's progress. Dropping it sends nothing more.
#[derive(Debug)]
pub struct Progress {
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    percents: mpsc::Sender<u8>,
    sender: JoinHandle<()>,
    /// How long [`Progress::close`] waits at most for what is still unsent.
    grace: Duration,
}

impl Progress {
    /// For jobs that nobody listens to.
    pub(super) fn silent() -> Self {
        Self { line: None }
    }

    pub(super) fn start(notifier: Notifier, job: &Job, target: Target, limit: Duration) -> Self {
        let (percents, waiting) = mpsc::channel(WAITING_MOST);
        let sender = tokio::spawn(send_all(notifier, Progressed::new(job), target, limit, waiting));
        Self { line: Some(Line { percents, sender, grace: limit }) }
    }

    /// Says how far the job is. Returns at once, from any thread; a notice that cannot be sent is dropped.
    pub fn report(&self, percent: u8) {
        if let Some(line) = &self.line {
            let _ = line.percents.try_send(percent);
        }
    }

    /// Sends what waits, for a short time; after this nothing is sent any more.
    pub async fn close(&mut self) {
        let Some(Line { percents, mut sender, grace }) = self.line.take() else { return };
        drop(percents);
        if tokio::time::timeout(grace, &mut sender).await.is_err() {
            sender.abort();
            let _ = sender.await;
        }
    }

    /// As [`Self::close`], when there is nothing more to report.
    pub async fn finish(mut self) {
        self.close().await;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.sender.abort();
        }
    }
}

async fn send_all(notifier: Notifier, mut body: Progressed, target: Target, limit: Duration, mut waiting: mpsc::Receiver<u8>) {
    while let Some(percent) = waiting.recv().await {
        body.progress = percent;
        let id = webhook_id(&[Kind::Progress.word(), body.job_id.as_str(), &percent.to_string()]);
        let Ok(notice) = Notice::new(target.clone(), Kind::Progress, id, &body) else { return };
        let problem = match notifier.attempt(&notice, limit).await {
            Ok(()) => continue,
            Err(Setback::Unwanted) => return,
            Err(Setback::Refused(error)) => error.to_string(),
            Err(Setback::Failed { problem, .. }) => problem,
        };
        tracing::debug!(job_id = body.job_id.as_str(), percent, problem, "progress not delivered");
    }
}
