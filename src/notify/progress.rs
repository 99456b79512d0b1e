//! Progress notifications: sent from the background, dropped rather than waited for, and never after the terminal notification.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

use super::body::Progressed;
use super::failure::DeliveryError;
use super::{Notifier, webhook_id};
use crate::job::notification::{Kind, NotificationTarget};
use crate::job::trace::Trace;
use crate::job::{Callback, Job};

/// More than a job has to say; what does not fit is dropped.
const MAX_WAITING: usize = 8;

/// One job's progress. Dropping it sends nothing more.
#[derive(Debug)]
pub struct Progress {
    line: Option<Line>,
}

/// Reports from wherever the work is done; clones report for the same job.
#[derive(Debug, Clone)]
pub struct Reporter(Option<mpsc::Sender<Message>>);

#[derive(Debug, Clone, Copy)]
enum Message {
    Percent(u8),
    End,
}

#[derive(Debug)]
struct Line {
    messages: mpsc::Sender<Message>,
    sender: JoinHandle<()>,
    /// How long [`Progress::close`] waits at most for what is still unsent.
    grace: Duration,
}

impl Notifier {
    /// Where the caller hears how `job` goes; each job has its own.
    #[must_use]
    pub fn progress(&self, job: &Job) -> Progress {
        if self.has_listener(job.callback.as_ref()) {
            Progress::start(self.clone(), job, self.progress_timeout)
        } else {
            Progress::silent()
        }
    }
}

impl Progress {
    /// For jobs that no one listens to.
    fn silent() -> Self {
        Self { line: None }
    }

    fn start(notifier: Notifier, job: &Job, limit: Duration) -> Self {
        let (messages, waiting) = mpsc::channel(MAX_WAITING);
        let prefix = job.output.own_prefix().map(str::to_owned);
        let sending = send_all(
            notifier,
            Progressed::new(job),
            job.callback.clone(),
            (Trace::current().or(job.trace), prefix),
            limit,
            waiting,
        );
        let sender = tokio::spawn(sending.in_current_span());
        Self { line: Some(Line { messages, sender, grace: limit }) }
    }

    #[must_use]
    pub fn reporter(&self) -> Reporter {
        Reporter(self.line.as_ref().map(|line| line.messages.clone()))
    }

    /// Sends what waits, for a short time; after this nothing is sent any more, whatever a reporter says.
    pub async fn close(&mut self) {
        let Some(Line { messages, mut sender, grace }) = self.line.take() else { return };
        let end = async {
            let _ = messages.send(Message::End).await;
            let _ = (&mut sender).await;
        };
        if tokio::time::timeout(grace, end).await.is_err() {
            sender.abort();
            let _ = sender.await;
        }
    }

    /// As [`Self::close`], when there is nothing more to report.
    pub async fn finish(mut self) {
        self.close().await;
    }
}

impl Reporter {
    /// Says how far the job is. Returns at once, from any thread; a notification that cannot be sent is dropped.
    pub fn report(&self, percent: u8) {
        if let Some(messages) = &self.0 {
            let _ = messages.try_send(Message::Percent(percent));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(line) = &self.line {
            line.sender.abort();
        }
    }
}

async fn send_all(
    notifier: Notifier,
    mut body: Progressed,
    callback: Option<Callback>,
    (trace, prefix): (Option<Trace>, Option<String>),
    limit: Duration,
    mut waiting: mpsc::Receiver<Message>,
) {
    while let Some(Message::Percent(percent)) = waiting.recv().await {
        body.progress = percent;
        let prefix = prefix.as_deref();
        let id = webhook_id(prefix, &[Kind::Progress.as_str(), body.job_id.as_str(), &percent.to_string()]);
        let job_id = Some(&body.job_id);
        let callback = callback.as_ref();
        let to = NotificationTarget { job_id, callback, requester: None, trace, prefix, fingerprint: None };
        let Ok(Some(notification)) = notifier.webhook(&to, Kind::Progress, id, &body) else { return };
        let receiver = notifier.destination(&notification).unwrap_or_default();
        if notifier.silence.is_silent(&receiver) {
            continue;
        }
        let Ok(delivery_request) = notifier.delivery_request(&notification).await else { return };
        let begun = Instant::now();
        let problem = match notifier.attempt(&delivery_request, limit).await {
            Ok(()) => continue,
            Err(DeliveryError::Unwanted) => return,
            Err(DeliveryError::Refused(error)) => error.to_string(),
            Err(DeliveryError::Failed(undelivered)) => {
                if undelivered.is_down && begun.elapsed() >= limit {
                    notifier.silence.note(receiver);
                }
                undelivered.problem
            }
        };
        tracing::debug!(percent, problem, "progress not delivered");
    }
}
