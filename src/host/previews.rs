//! Previews of running jobs, from the handler that makes them to whoever looks on; nothing is asked for where no one does.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::protocol::control::ControlCommand;
use crate::protocol::report::Preview;

/// The newest preview of each job that someone looks at.
#[derive(Debug, Default)]
pub struct Previews {
    watched: Mutex<HashMap<String, watch::Sender<Option<Arc<Preview>>>>>,
    /// Sees a new value when the first one looks at a job, or the last one has gone.
    changes: watch::Sender<()>,
}

/// Someone who looks at a job; dropped, nobody does for their sake.
#[derive(Debug)]
pub struct Looking {
    previews: Arc<Previews>,
    job_id: String,
    newest: watch::Receiver<Option<Arc<Preview>>>,
}

impl Previews {
    /// Looks at a job from now on: one that runs, or that will.
    pub fn subscribe(self: &Arc<Self>, job_id: &str) -> Looking {
        let mut watched = self.watched();
        let mut newest = watched.entry(job_id.to_owned()).or_default().subscribe();
        // What another one who looks has seen already is new to this one.
        newest.mark_changed();
        let is_first = watched.get(job_id).is_some_and(|sender| sender.receiver_count() == 1);
        drop(watched);
        if is_first {
            self.changes.send_replace(());
        }
        Looking { previews: Arc::clone(self), job_id: job_id.to_owned(), newest }
    }

    /// Keeps what a handler has sent, where someone looks at the job.
    pub fn show(&self, job_id: &str, preview: Preview) {
        if let Some(sender) = self.watched().get(job_id) {
            sender.send_replace(Some(Arc::new(preview)));
        }
    }

    /// Forgets the preview of a job that begins, or begins anew.
    pub fn begin(&self, job_id: &str) {
        if let Some(sender) = self.watched().get(job_id) {
            sender.send_replace(None);
        }
    }

    /// Sees a new value when the first one looks at a job, or the last one has gone.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// What a handler is to be told of its jobs. `asked`: those that it was asked to show, which are brought up to date.
    pub fn commands(&self, job_ids: &[String], asked: &mut BTreeSet<String>) -> Vec<ControlCommand> {
        let watched = self.watched();
        let changed = job_ids.iter().filter_map(|job_id| {
            let is_wanted = watched.contains_key(job_id);
            let is_new = if is_wanted { asked.insert(job_id.clone()) } else { asked.remove(job_id) };
            is_new.then(|| ControlCommand::Preview { job_id: job_id.clone(), is_wanted })
        });
        changed.collect()
    }

    /// A panic under the lock leaves the map as it was: every change is one assignment.
    fn watched(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Option<Arc<Preview>>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looking {
    /// The newest preview, if it has not been taken yet.
    pub fn take(&mut self) -> Option<Arc<Preview>> {
        if !self.newest.has_changed().unwrap_or(false) {
            return None;
        }
        self.newest.borrow_and_update().clone()
    }

    /// Resolves with the newest preview once there is one that has not been taken yet.
    pub async fn next(&mut self) -> Arc<Preview> {
        loop {
            // The sender lives as long as this.
            if self.newest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(preview) = self.newest.borrow_and_update().clone() {
                return preview;
            }
        }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        let mut watched = self.previews.watched();
        // This one's own receiver is still there.
        if watched.get(&self.job_id).is_some_and(|sender| sender.receiver_count() == 1) {
            watched.remove(&self.job_id);
            drop(watched);
            self.previews.changes.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn preview(step: u32) -> Preview {
        Preview { step, steps: 20, width_px: 64, height_px: 64, image: "/9j/".into() }
    }

    fn command(is_wanted: bool) -> Vec<ControlCommand> {
        vec![ControlCommand::Preview { job_id: "job-1".into(), is_wanted }]
    }

    #[test]
    fn a_handler_is_asked_while_anybody_looks_and_told_when_the_last_one_has_gone() {
        let previews = Arc::new(Previews::default());
        let mut asked = BTreeSet::new();
        let jobs = ["job-1".to_owned(), "job-2".to_owned()];
        previews.show("job-1", preview(1));
        assert_eq!(previews.commands(&jobs, &mut asked), []);
        let mut first = previews.subscribe("job-1");
        assert_eq!(first.take(), None, "what nobody looked at was not kept");
        assert_eq!(previews.commands(&jobs, &mut asked), command(true));
        previews.show("job-1", preview(2));
        let mut late = previews.subscribe("job-1");
        assert_eq!(previews.commands(&jobs, &mut asked), [], "it is asked already");
        for looking in [&mut first, &mut late] {
            assert_eq!(looking.take().map(|preview| preview.step), Some(2));
            assert_eq!(looking.take(), None, "nothing twice");
        }
        drop(first);
        assert_eq!(previews.commands(&jobs, &mut asked), []);
        let changes = previews.changes();
        drop(late);
        assert!(changes.has_changed().unwrap());
        assert_eq!(previews.commands(&jobs, &mut asked), command(false));
    }

    #[test]
    fn what_an_attempt_before_has_shown_is_gone() {
        let previews = Arc::new(Previews::default());
        let mut looking = previews.subscribe("job-1");
        previews.show("job-1", preview(9));
        previews.begin("job-1");
        assert_eq!(looking.take(), None);
        previews.show("job-1", preview(1));
        assert_eq!(looking.next().now_or_never().map(|preview| preview.step), Some(1));
        assert!(looking.next().now_or_never().is_none());
    }
}
