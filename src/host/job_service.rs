//! The front job service: what HTTP may ask of the host, and nothing more. No call waits for the GPU.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::acceptance::NotAccepted;
use super::jobs::{Acceptance, Cancelling, Claim, JobStatus, Jobs, Sending};
use super::source::{Source, SourceError};
use crate::fault_point::fault_point;
use crate::job::Job;
use crate::job::request::catalogue::Catalogue;
use crate::job::trace::{self, Trace};

/// How far the handlers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Model {
    /// No handler is ready yet, or one that was ready is started again.
    Loading,
    /// At least one handler is ready.
    Hot,
    /// No handler has ever been ready, and the last one that tried said why; another try is on its way.
    Failed(String),
    /// Others have the memory of its device: it is loaded when a job needs it. `loading`: that is under way.
    Unloaded { loading: bool },
}

impl Model {
    /// Whether a job is taken: a handler is ready, or is loaded for it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        matches!(self, Self::Hot | Self::Unloaded { .. })
    }
}

/// How far one model's handlers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelStatus {
    pub model: Model,
    /// Handlers that could take a job now.
    pub free: usize,
}

/// A snapshot at the handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSnapshot {
    /// Of each listed model, in their order; one at least.
    pub models: Vec<ModelStatus>,
    /// Ids of the jobs that run now.
    pub running: Vec<String>,
    /// Jobs taken from queues that wait for a handler.
    pub in_flight: usize,
    /// The host receives nothing more.
    pub draining: bool,
}

impl StatusSnapshot {
    /// Hot when each model is or can be loaded; else what keeps the first that is not, and its place.
    #[must_use]
    pub fn model(&self) -> (usize, &Model) {
        let states = || self.models.iter().map(|status| &status.model).enumerate();
        let failed = states().find(|(_, state)| matches!(state, Model::Failed(_)));
        failed.or_else(|| states().find(|(_, state)| **state == Model::Loading)).unwrap_or((0, &Model::Hot))
    }

    /// Why no job can be taken, of any kind: no model got ready, and this kept the first.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        let mut failures = self.models.iter().map(|status| match &status.model {
            Model::Failed(why) => Some(why.as_str()),
            Model::Hot | Model::Loading | Model::Unloaded { .. } => None,
        });
        let first = failures.next().flatten();
        first.filter(|_| failures.all(|failure| failure.is_some()))
    }

    /// Handlers that could take a job now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.models.iter().map(|status| status.free).sum()
    }
}

/// A job that waits for its handler's own answer instead of going through a queue.
pub struct Direct {
    pub job: Box<Job>,
    /// The place of the model that it is for, in the catalogue.
    pub model: usize,
    pub body: Vec<u8>,
    /// Dropped when the caller is gone: then the job is cancelled.
    pub answer: oneshot::Sender<Ending>,
    /// Since when its caller has waited.
    pub since: Instant,
    /// Kept until the job has come to its end here.
    pub claim: Claim,
    /// Every line of the log about it stands in it.
    pub span: Span,
}

impl Direct {
    /// A new span for it.
    #[must_use]
    pub fn span(job: &Job) -> Span {
        trace::span(job.id.as_str(), "infer", 1, job.trace)
    }

    #[must_use]
    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// What its handler's spans stand below: its own span where that is exported, else its caller's.
    #[must_use]
    pub fn trace(&self) -> Option<Trace> {
        Trace::of(&self.span).or(self.job.trace)
    }
}

/// How a [`Direct`] job ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// What the handler answered to `POST /generate`, in the shape of an API Gateway v2 response (`statusCode`, `body`, ...).
    Answer(Value),
    /// The handler died over it, or answered nothing in time; the text says how.
    Crashed(String),
    /// Someone cancelled it before it was started.
    Cancelled,
    /// The host shuts down.
    Drained,
}

/// A queue has the job now, or it is complete.
#[derive(Debug, Clone, PartialEq)]
pub enum Accepted {
    New,
    Known(JobStatus),
}

/// What HTTP works with; clones are the same job service.
#[derive(Clone)]
pub struct JobService {
    pub jobs: Arc<Jobs>,
    /// The models behind this host, with what their jobs get that leave a field out.
    pub catalogue: Arc<Catalogue>,
    /// Where HTTP jobs go.
    pub queue: Arc<dyn Source>,
    /// Jobs that may wait in `queue` at most.
    pub max_waiting: u64,
    /// Of one tenant; none: as many as may wait at all.
    pub max_waiting_per_tenant: Option<u64>,
    pub snapshot: watch::Receiver<StatusSnapshot>,
    /// Why the store cannot be used; none while it can.
    pub store_trouble: watch::Receiver<Option<String>>,
    /// To the dispatcher: jobs that wait for their answer.
    pub direct: mpsc::Sender<Direct>,
    /// To the dispatcher: running jobs to be cancelled.
    pub cancels: mpsc::UnboundedSender<String>,
}

impl JobService {
    /// Puts a job into the queue; returns when the queue has it for good. What has begun is brought to its end even if the
    /// caller is gone by then; a caller who hands the job in meanwhile waits for the same end.
    ///
    /// # Errors
    /// [`NotAccepted`]; then the job is not in the queue as far as is known, and the caller may try again.
    pub async fn submit(&self, job: &Job, body: &[u8]) -> Result<Accepted, NotAccepted> {
        loop {
            if self.snapshot.borrow().draining {
                return Err(NotAccepted::Draining);
            }
            let sending = match self.jobs.accept(job, self.queue.is_shared()) {
                Acceptance::Conflict => return Err(NotAccepted::Conflict(job.id.clone())),
                Acceptance::InProgress(why) => return Err(NotAccepted::InProgress(why)),
                Acceptance::Known(job_status) => return Ok(Accepted::Known(job_status)),
                Acceptance::UnderWay(under_way) => {
                    let is_same = under_way.is_of(job);
                    let result = under_way.ended().await;
                    if is_same {
                        return result.map(|()| Accepted::New);
                    }
                    // What is known now says whether it is a conflict.
                    continue;
                }
                Acceptance::New(sending) => sending,
            };
            let job_service = self.clone();
            let job = job.clone();
            let body = body.to_vec();
            let submitting = tokio::spawn(async move {
                let result = job_service.enqueue(&job, &body, &sending).await;
                sending.ended(result.clone());
                result
            });
            return submitting.await.unwrap_or(Err(NotAccepted::Draining)).map(|()| Accepted::New);
        }
    }

    /// `sending` has counted before the queue is asked, so that of many callers at once no more come in than there is room for.
    async fn enqueue(&self, job: &Job, body: &[u8], sending: &Sending) -> Result<(), NotAccepted> {
        self.check_room(job, sending.before(), sending.waiting_of_tenant()).await?;
        fault_point!("before-send");
        self.queue.send_for(job.tenant.as_deref(), job.id.as_str(), body, job.trace).await?;
        fault_point!("after-send");
        Ok(())
    }

    /// Whether [`Self::submit`] would take a job now; for callers who have work to do before it.
    ///
    /// # Errors
    /// What `submit` would say.
    pub async fn room(&self, job: &Job) -> Result<(), NotAccepted> {
        if self.snapshot.borrow().draining {
            return Err(NotAccepted::Draining);
        }
        match self.jobs.job_status(job.id.as_str()).filter(|known| !known.has_failed()) {
            Some(known) if known.may_be_over(self.queue.is_shared()) => {}
            Some(known) if known.fingerprint != job.fingerprint => return Err(NotAccepted::Conflict(job.id.clone())),
            Some(_) => return Ok(()),
            None => {}
        }
        self.check_room(job, 0, self.jobs.waiting_of_tenant(job)).await
    }

    /// `before`: jobs on their way into the queue that came earlier. `of_tenant`: jobs of its tenant that wait or come earlier.
    async fn check_room(&self, job: &Job, before: u64, of_tenant: u64) -> Result<(), NotAccepted> {
        if let Some(limit) = self.max_waiting_per_tenant.filter(|_| job.tenant.is_some())
            && of_tenant >= limit
        {
            return Err(NotAccepted::TenantBusy { limit });
        }
        let free = self.of(job).free as u64;
        let room = self.max_waiting.saturating_add(free);
        if self.waiting().await?.saturating_add(before) >= room { Err(NotAccepted::Busy) } else { Ok(()) }
    }

    /// How far the handlers of the job's model are.
    #[must_use]
    pub fn of(&self, job: &Job) -> ModelStatus {
        self.status(self.place(job))
    }

    /// A job that no model does was refused before; one that came nevertheless is for the first, which refuses it.
    fn place(&self, job: &Job) -> usize {
        self.catalogue.place(job).unwrap_or(0)
    }

    fn status(&self, model: usize) -> ModelStatus {
        let status = self.snapshot.borrow().models.get(model).cloned();
        status.unwrap_or(ModelStatus { model: Model::Loading, free: 0 })
    }

    /// Jobs that wait: in the queue, and taken from it but not started.
    ///
    /// # Errors
    /// [`SourceError`] when the queue cannot be asked.
    pub async fn waiting(&self) -> Result<u64, SourceError> {
        Ok(self.queue.depth().await?.waiting + self.snapshot.borrow().in_flight as u64)
    }

    /// Gives a job to a free handler at once. Dropping the receiver cancels it. `span`: [`Direct::span`].
    ///
    /// # Errors
    /// [`NotAccepted::NoHandlerFree`]; [`NotAccepted::InProgress`] when this node has the job already,
    /// [`NotAccepted::Conflict`] when it has another request under the id.
    pub fn run_now(&self, job: Job, body: Vec<u8>, span: Span) -> Result<oneshot::Receiver<Ending>, NotAccepted> {
        if self.snapshot.borrow().draining {
            return Err(NotAccepted::Draining);
        }
        let claim = match self.jobs.claim(&job, self.queue.is_shared()) {
            Ok(claim) => claim,
            Err(Acceptance::InProgress(why)) => return Err(NotAccepted::InProgress(why)),
            Err(_) => return Err(NotAccepted::Conflict(job.id)),
        };
        let model = self.place(&job);
        if self.status(model).free == 0 {
            return Err(NotAccepted::NoHandlerFree);
        }
        let (answer, ending) = oneshot::channel();
        self.direct
            .try_send(Direct { job: Box::new(job), model, body, answer, since: Instant::now(), claim, span })
            .map_err(|_| NotAccepted::NoHandlerFree)?;
        Ok(ending)
    }

    /// Cancels a job: one that waits is not started, one that runs stops before its next denoising step. Its caller gets the
    /// `failed` notification with the code `cancelled`. One that is on its way into the queue is waited for.
    pub async fn cancel(&self, id: &str) -> Cancelling {
        if let Some(under_way) = self.jobs.under_way(id) {
            // Whatever came of it is known now.
            let _ = under_way.ended().await;
        }
        let cancelling = self.jobs.cancel(id);
        if matches!(cancelling, Cancelling::Running | Cancelling::Waiting) {
            // A dispatcher that is gone has nothing running, and nothing that waits.
            let _ = self.cancels.send(id.to_owned());
        }
        cancelling
    }
}
