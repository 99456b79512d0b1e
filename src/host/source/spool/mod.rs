//! The spool: a queue in a directory, for one host, that survives kill -9 of everything.
//!
//! A job is a file with its body. Its state is the directory it lies in (`waiting/`, `running/`, `dead/`, `again/`), and every change of
//! state is one rename; it is accepted when file and directory are synced. `again/` is what another process has taken out of `dead/`: the host
//! moves it to `waiting/`.

pub mod dead_letters;
mod disk;
mod files;
pub mod inspect;
mod name;
mod record;
mod waiting;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use serde::Deserialize;
use tokio::sync::Notify;
use tracing::Instrument as _;

use self::disk::Disk;
use self::files::{Directory, EndNote, Files};
use self::name::Name;
use self::record::message;
use self::waiting::{Waiting, before};
use super::{Depth, Message, Shape, Source, SourceError};
use crate::clock::later;
use crate::host::ended::EndedJob;
use crate::job::trace::{self, Trace};
use crate::protocol::deferral::{DeferReason, Deferral};

/// Settings of section `sources.spool`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the jobs lie; one host at a time may use it. Put it on a disk that outlives the container.
    pub directory: PathBuf,
    /// true: refused messages are dead-lettered even when their sender was notified; else only those that no one could be notified of.
    pub keep_refused: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { directory: PathBuf::from("spool"), keep_refused: false }
    }
}

const NAME: &str = "spool";

/// The queue in a directory; clones are the same queue.
#[derive(Clone)]
pub struct Spool {
    disk: Disk,
    index: Arc<Mutex<BTreeSet<Waiting>>>,
    arrived: Arc<Notify>,
    /// When `again/` was looked into.
    looked: Arc<Mutex<Instant>>,
    keep_refused: bool,
}

/// How often what was sent again is looked for.
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(2);

/// What a job that goes back to `waiting/` says of the attempt that it comes from.
enum Attempt {
    Counted,
    Untried,
    Deferred(Deferral),
}

/// A job on its way back from `running/`.
#[derive(Clone)]
struct Returning {
    action: &'static str,
    running: Name,
    waiting: Waiting,
    note: EndNote,
}

impl Spool {
    /// Opens the directory and puts back what an earlier host had in flight when it died. `max_pause`: no job waits for longer
    /// before it is tried again, whatever the clock was when its retry was written.
    ///
    /// # Errors
    /// When the directory cannot be used, or another host uses it.
    pub fn open(settings: &Settings, max_pause: Duration) -> Result<Self, SourceError> {
        let files = Files::open(&settings.directory).map_err(|problem| refused(&settings.directory, "open", &problem))?;
        let problem = |problem| refused(&settings.directory, "open", &problem);
        for name in files.list(Directory::Running).map_err(problem)? {
            files.rename((Directory::Running, &name), (Directory::Waiting, &name)).map_err(problem)?;
            let span = trace::span(&name.job_id, NAME, name.attempt, name.trace);
            span.in_scope(|| tracing::warn!("a job was in flight when the host died; it is tried again"));
        }
        files.remove_old_ends().map_err(problem)?;
        let names = files.list(Directory::Waiting).map_err(problem)?;
        // One moment for all: what is due already keeps the order of its names.
        let now = SystemTime::now();
        let opened = Instant::now();
        let waiting = names.into_iter().map(|name| Waiting { due: later(opened, name.due_in(now, max_pause)), name });
        Ok(Self {
            disk: Disk::new(files),
            index: Arc::new(Mutex::new(waiting.collect())),
            arrived: Arc::new(Notify::new()),
            looked: Arc::new(Mutex::new(opened)),
            keep_refused: settings.keep_refused,
        })
    }

    /// Jobs that were sent again wait like new ones. In the index before anyone could stop waiting for this.
    async fn take_again(&self) {
        {
            let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
            if looked.elapsed() < LOOK_AGAIN_EVERY {
                return;
            }
            *looked = Instant::now();
        }
        let index = Arc::clone(&self.index);
        let taken = self.disk.work("send again", move |files| {
            let (moved, failed) = files.take_again();
            index.lock().unwrap_or_else(PoisonError::into_inner).extend(moved.into_iter().map(Waiting::due_now));
            failed.inspect(|error| tracing::debug!(%error, "what was sent again cannot be moved to waiting/"));
            Ok(())
        });
        if let Err(error) = taken.await {
            tracing::debug!(%error, "the spool was not looked into for what was sent again");
        }
    }

    /// Takes the first job that is due, or says when the next one is.
    fn take_due(&self) -> Result<Name, Option<Duration>> {
        let mut index = self.index();
        let Some(first) = index.first() else { return Err(None) };
        let left = first.due.saturating_duration_since(Instant::now());
        if left > Duration::ZERO {
            return Err(Some(left));
        }
        index.pop_first().map(|first| first.name).ok_or(None)
    }

    async fn start(&self, waiting: Name) -> Result<Message, SourceError> {
        let mut running = waiting.clone();
        running.attempt = running.attempt.saturating_add(1);
        let from = waiting.clone();
        let to = running.clone();
        let started = self.disk.work("receive", move |files| files.start(&from, &to).map(|body| (body, files.end(&to))));
        match started.await {
            Ok((body, ended)) => {
                let ended = ended.and_then(|ended| EndedJob::decode(&ended));
                Ok(Message { ended, ..message(&running, body) })
            }
            // Someone took the file away: there is no job any more.
            Err(error @ SourceError::Lost { .. }) => Err(error),
            Err(error) => {
                self.index().insert(Waiting::due_now(waiting));
                Err(error)
            }
        }
    }

    /// Those that could be started; the error only where there is none.
    async fn start_all(&self, names: Vec<Name>) -> Result<Vec<Message>, SourceError> {
        let mut messages = Vec::with_capacity(names.len());
        let mut failed = None;
        for name in names {
            match self.start(name).await {
                Ok(message) => messages.push(message),
                Err(error) => {
                    tracing::debug!(%error, "a job of the spool was not started");
                    failed = failed.or(Some(error));
                }
            }
        }
        match failed {
            Some(error) if messages.is_empty() => Err(error),
            _ => Ok(messages),
        }
    }

    /// With what is noted of its job's end, where `attempt` is deferred.
    async fn requeue(
        &self,
        message: &Message,
        action: &'static str,
        delay: Duration,
        attempt: Attempt,
    ) -> Result<(), SourceError> {
        let running = self.in_flight(message, action)?;
        let mut waiting = running.clone();
        let mut note = EndNote::Stays;
        match attempt {
            Attempt::Counted => waiting.deferral = None,
            Attempt::Untried => waiting.attempt = waiting.attempt.saturating_sub(1),
            Attempt::Deferred(deferral) => {
                waiting.attempt = waiting.attempt.saturating_sub(1);
                waiting.deferral = Some(deferral);
                note = EndNote::Becomes(message.ended.as_ref().map(EndedJob::encode));
            }
        }
        waiting.due(later(SystemTime::now(), delay));
        let waiting = Waiting { due: later(Instant::now(), delay), name: waiting };
        self.requeue_or_repeat(Returning { action, running, waiting, note }).await
    }

    /// Nobody else would bring the job back: what the disk does not do now is tried again until it does.
    async fn requeue_or_repeat(&self, returning: Returning) -> Result<(), SourceError> {
        let moved = self.try_to_requeue(&returning).await;
        if matches!(moved, Err(SourceError::Unavailable { .. })) {
            tokio::spawn(self.clone().requeue_later(returning).in_current_span());
        }
        moved
    }

    async fn requeue_later(self, returning: Returning) {
        let mut backoff = Disk::backoff();
        loop {
            tokio::time::sleep(backoff.next_pause()).await;
            match self.try_to_requeue(&returning).await {
                Ok(()) => return tracing::info!("a job that the disk had held back waits again"),
                Err(error @ SourceError::Unavailable { .. }) => tracing::debug!(%error, "a job still cannot be put back"),
                Err(error) => return tracing::warn!(%error, "a job could not be put back"),
            }
        }
    }

    async fn try_to_requeue(&self, returning: &Returning) -> Result<(), SourceError> {
        let Returning { action, running, waiting, note } = returning.clone();
        let to = waiting.name.clone();
        let moving = self.disk.work(action, move |files| {
            if let EndNote::Becomes(ended) = note {
                files.note_end(&running, ended.as_deref())?;
            }
            files.rename((Directory::Running, &running), (Directory::Waiting, &to))
        });
        moving.await?;
        self.index().insert(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// How the job ended goes along with it, in a file of its own.
    async fn note_end(&self, message: &Message, action: &'static str) -> Result<(), SourceError> {
        let name = self.in_flight(message, action)?;
        let ended = message.ended.as_ref().map(EndedJob::encode);
        self.disk.work(action, move |files| files.note_end(&name, ended.as_deref())).await
    }

    fn in_flight(&self, message: &Message, action: &'static str) -> Result<Name, SourceError> {
        Name::parse(&message.receipt).ok_or_else(|| SourceError::Lost {
            queue: self.disk.label(),
            action,
            problem: format!("{:?} is no receipt of the spool", message.receipt),
        })
    }

    /// A panic under the lock leaves nothing half done: every change is one call.
    fn index(&self) -> MutexGuard<'_, BTreeSet<Waiting>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(directory: &std::path::Path, action: &'static str, problem: &std::io::Error) -> SourceError {
    SourceError::Refused {
        queue: format!("spool {} (sources.spool.directory)", directory.display()),
        action,
        problem: problem.to_string(),
    }
}

#[async_trait]
impl Source for Spool {
    fn name(&self) -> &'static str {
        NAME
    }

    fn knows_when_sent(&self) -> bool {
        true
    }

    fn shape(&self) -> Shape {
        Shape::Sqs
    }

    fn keeps_refused(&self) -> bool {
        self.keep_refused
    }

    /// What a dropped call had taken stays in `running/` until the directory is opened again; so the moves are made in a task of
    /// its own, which puts the jobs back when no one wants them any more.
    async fn receive(&self, most: usize) -> Result<Vec<Message>, SourceError> {
        loop {
            let arrived = self.arrived.notified();
            self.take_again().await;
            match self.take_due() {
                Ok(name) => {
                    let more = std::iter::from_fn(|| self.take_due().ok());
                    let names = std::iter::once(name).chain(more).take(most.max(1)).collect();
                    let spool = self.clone();
                    let (sender, started) = tokio::sync::oneshot::channel();
                    tokio::spawn(async move {
                        if let Err(Ok(unwanted)) = sender.send(spool.start_all(names).await) {
                            for message in unwanted {
                                if let Err(error) = spool.release(&message).await {
                                    tracing::warn!(%error, "a job could not be put back into the spool");
                                }
                            }
                        }
                    });
                    return started.await.unwrap_or_else(|_| Ok(Vec::new()));
                }
                Err(left) => tokio::select! {
                    () = arrived => {}
                    () = tokio::time::sleep(left.map_or(LOOK_AGAIN_EVERY, |left| left.min(LOOK_AGAIN_EVERY))) => {}
                },
            }
        }
    }

    fn position(&self, job_id: &str, counts: &dyn Fn(&str) -> bool) -> Option<u64> {
        before(&self.index(), job_id, counts)
    }

    fn trouble(&self) -> Option<String> {
        self.disk.trouble()
    }

    async fn ack(&self, message: &Message) -> Result<(), SourceError> {
        let name = self.in_flight(message, "ack")?;
        self.disk
            .work("ack", move |files| files.remove(Directory::Running, &name).and_then(|()| files.note_end(&name, None)))
            .await
    }

    async fn retry(&self, message: &Message, delay: Duration) -> Result<(), SourceError> {
        self.requeue(message, "retry", delay, Attempt::Counted).await
    }

    async fn release(&self, message: &Message) -> Result<(), SourceError> {
        self.requeue(message, "release", Duration::ZERO, Attempt::Untried).await
    }

    /// It lies in `waiting/` under a name that says when it is due, and is due no later than [`Spool::open`]'s longest pause after
    /// the directory is opened again.
    async fn defer(&self, message: &Message, delay: Duration, reason: DeferReason) -> Result<(), SourceError> {
        let deferral = Deferral::next(message.deferral, reason, SystemTime::now());
        self.requeue(message, "defer", delay, Attempt::Deferred(deferral)).await
    }

    /// The job goes to `dead/`, its reason next to it; moving the file back to `waiting/` and starting the host again tries it anew.
    async fn dead_letter(&self, message: &Message, reason: &str) -> Result<(), SourceError> {
        let name = self.in_flight(message, "dead-letter")?;
        // The record says it too, or the note of the failure.
        if let Err(error) = self.note_end(message, "dead-letter").await {
            tracing::warn!(%error, "a dead letter does not say how its job ended");
        }
        let reason = reason.to_owned();
        self.disk.work("dead-letter", move |files| files.bury(&name, &reason)).await
    }

    async fn send(&self, job_id: &str, body: &[u8], trace: Option<Trace>) -> Result<(), SourceError> {
        let name = Name::new(job_id, trace, SystemTime::now());
        let body = body.to_owned();
        let to = name.clone();
        self.disk.work("send", move |files| files.create(Directory::Waiting, &to, &body)).await?;
        self.index().insert(Waiting::due_now(name));
        self.arrived.notify_one();
        Ok(())
    }

    async fn depth(&self) -> Result<Depth, SourceError> {
        let index = self.index();
        let oldest = index.iter().map(|waiting| waiting.name.sent_ms).min().map(|ms| {
            let sent = later(SystemTime::UNIX_EPOCH, Duration::from_millis(ms));
            SystemTime::now().duration_since(sent).unwrap_or_default()
        });
        Ok(Depth { waiting: index.len() as u64, oldest })
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests;
