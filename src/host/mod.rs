//! The host: takes messages from queues and HTTP, speaks the Runtime API to handlers, and survives them.
//!
//! ```text
//! source/ ─► dispatch/intake ─► dispatch (dispatcher) ─► supervisor ─► runtime_api ─► process (a handler)
//! http/ ──► job service ──────────────────────▲                    └─► dispatch/acknowledge ─► notification sender, source/
//! ```

pub mod acceptance;
pub mod answer;
pub mod cause;
pub mod cloud;
pub mod descriptors;
pub mod dispatch;
pub mod drain;
pub mod ended;
pub mod event;
pub mod failure;
pub mod functions;
pub mod http;
pub mod in_flight;
pub mod job_service;
pub mod jobs;
pub mod listed;
pub(crate) mod listener;
pub mod measure;
pub mod notification_sender;
pub mod outbox;
pub mod previews;
pub mod process;
pub mod runtime_api;
pub mod sending;
pub mod sharing;
pub mod source;
pub mod store_health;
pub mod supervisor;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cloud::{interruption, protection};
use self::dispatch::acknowledge::{Acknowledger, Retries};
use self::dispatch::{Dispatcher, HandlerPlace, acknowledge, intake, waiting};
use self::failure::{HostFailure, first_end};
use self::job_service::{Direct, Ending, JobService};
use self::jobs::Jobs;
use self::listed::ListedModel;
use self::notification_sender::NotificationSender;
use self::outbox::Outbox;
use self::process::{Launcher, Listener, Program};
use self::source::Source;
use self::store_health::StoreHealth;
use self::supervisor::{Phase, Worker};
use crate::clock::later;
use crate::job::capabilities::Capabilities;
use crate::job::request::catalogue::Catalogue;
use crate::job::segmenter::Segmenter;
use crate::job::task::ModelName;
use crate::job::upscalers::Upscalers;
use crate::metrics::Metrics;
use crate::notify;
use crate::protocol::deferral::DeferReason;
use crate::protocol::report::{self, Report};
use crate::setting::Secret;

/// Settings of section `host`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Handler processes; 0: one per visible GPU, or one where there is none.
    pub handlers: u32,
    /// The models that are served, each by handlers of its own; empty: `model.name` alone.
    pub models: Vec<ListedModel>,
    pub sharing: sharing::Settings,
    /// Jobs of one event at most. More than one: those that agree in model, size, steps, scheduler, guidance and LoRAs are denoised
    /// as one batch, within `runtime.max_batch_px`.
    pub batch: u32,
    /// Seconds that running jobs may go on after SIGTERM before they are handed back.
    pub drain_seconds: u64,
    /// Jobs of HTTP callers that may wait at most.
    pub max_waiting: u64,
    /// Of one tenant; none: as many as may wait at all.
    pub max_waiting_per_tenant: Option<u64>,
    /// Milliseconds until a failed job is tried again, at first; each further pause can be twice as long.
    pub initial_backoff_ms: u64,
    /// Milliseconds until a failed job is tried again, at most.
    pub max_backoff_ms: u64,
    pub handler: supervisor::Settings,
    pub http: http::Settings,
    pub protection: protection::Settings,
    pub interruption: interruption::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            handlers: 0,
            models: Vec::new(),
            sharing: sharing::Settings::default(),
            batch: 1,
            drain_seconds: 100,
            max_waiting: 100,
            max_waiting_per_tenant: None,
            initial_backoff_ms: 5_000,
            max_backoff_ms: 300_000,
            handler: supervisor::Settings::default(),
            http: http::Settings::default(),
            protection: protection::Settings::default(),
            interruption: interruption::Settings::default(),
        }
    }
}

/// Where a handler is to be kept.
pub struct Place {
    pub program: Program,
    /// The value of its `CUDA_VISIBLE_DEVICES`, where it is to see one GPU only.
    pub gpu: Option<String>,
    pub handler: HandlerPlace,
}

/// Everything a host is made of.
pub struct Parts {
    pub settings: Settings,
    /// One a handler.
    pub places: Vec<Place>,
    pub sources: Vec<Arc<dyn Source>>,
    /// The source that HTTP jobs go to.
    pub queue: Arc<dyn Source>,
    pub notification_sender: NotificationSender,
    /// When and how often notifications are sent.
    pub notify: notify::Settings,
    pub catalogue: Arc<Catalogue>,
    pub max_attempts: u32,
    /// Whether its handlers need the store; another function's may not.
    pub needs_store: bool,
    /// What an HTTP event of the host presents to the handler.
    pub token: Option<Secret>,
    pub metrics: Metrics,
}

impl Parts {
    fn acknowledger(&self, jobs: &Arc<Jobs>) -> Acknowledger {
        let retries = retries(&self.settings, self.max_attempts);
        let store_health = store_health(self);
        let services = outbox::Services { sender: self.notification_sender.clone(), store_health: store_health.clone() };
        let force_shutdown = CancellationToken::new();
        let backoff = (retries.initial_backoff, retries.max_backoff);
        Acknowledger {
            jobs: jobs.clone(),
            outbox: Outbox::new(services, &self.notify, backoff, force_shutdown.clone()),
            retries,
            store_health,
            token: self.token.clone(),
            metrics: self.metrics.clone(),
            under_way: TaskTracker::new(),
            force_shutdown,
        }
    }
}

/// A host with its handlers starting and its sources open.
pub struct Host {
    settings: Settings,
    job_service: JobService,
    dispatcher: Arc<Dispatcher>,
    acknowledger: Acknowledger,
    phase: watch::Sender<Phase>,
    workers: JoinSet<()>,
    intakes: JoinSet<()>,
    /// What works for as long as the host lives.
    background: JoinSet<()>,
    stop: CancellationToken,
    functions: watch::Receiver<Vec<Function>>,
}

/// What the handlers of a model say of themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    pub model: ModelName,
    pub capabilities: Capabilities,
    pub upscalers: Upscalers,
    pub segmenter: Segmenter,
}

impl Host {
    /// Starts the handlers and the sources.
    ///
    /// # Errors
    /// When the thread that starts processes cannot be started.
    pub fn start(parts: Parts) -> io::Result<Self> {
        let jobs = Arc::new(Jobs::default());
        let handlers: Vec<_> = parts.places.iter().map(|place| place.handler).collect();
        let (direct, directs) = mpsc::channel(handlers.len());
        let Settings { batch, sharing, .. } = &parts.settings;
        let (dispatcher, cancelled) = Dispatcher::new(&handlers, *batch as usize, sharing, jobs.clone());
        let (cancels, cancel_requests) = mpsc::unbounded_channel();
        let acknowledger = parts.acknowledger(&jobs);
        let job_service = JobService {
            jobs,
            catalogue: parts.catalogue.clone(),
            queue: parts.queue,
            max_waiting: parts.settings.max_waiting,
            max_waiting_per_tenant: parts.settings.max_waiting_per_tenant,
            snapshot: dispatcher.snapshot(),
            store_trouble: acknowledger.store_health.subscribe(),
            direct,
            cancels,
        };
        let phase = watch::Sender::new(Phase::Running);
        let launcher = Launcher::start()?;
        let heard = parts.metrics.clone();
        let known = job_service.jobs.clone();
        let (heard_functions, functions) = watch::channel(Vec::new());
        let listener: Listener = Arc::new(move |line: &str| hear(line, &heard, &known, &heard_functions));
        let models: Arc<[ModelName]> = parts.catalogue.models().map(|model| model.name.clone()).collect();
        let mut workers = JoinSet::new();
        for (index, (Place { program, gpu, handler }, cancels)) in parts.places.into_iter().zip(cancelled).enumerate() {
            let worker = Worker {
                index,
                program,
                model: parts.catalogue.at(handler.model).name.clone(),
                models: models.clone(),
                gpu,
                settings: parts.settings.handler.clone(),
                launcher: launcher.clone(),
                dispatcher: dispatcher.clone(),
                acknowledger: acknowledger.clone(),
                listener: listener.clone(),
                metrics: parts.metrics.clone(),
                phase: phase.subscribe(),
                cancels,
            };
            workers.spawn(worker.keep());
        }
        let stop = CancellationToken::new();
        let mut intakes = JoinSet::new();
        tokio::spawn(measure::handlers(dispatcher.clone(), parts.catalogue.clone(), parts.metrics.clone()));
        for source in parts.sources {
            parts.metrics.source_opened(source.name(), DeferReason::ALL.map(DeferReason::as_str));
            tokio::spawn(measure::queue(source.clone(), parts.metrics.clone()));
            intakes.spawn(intake::run(source, acknowledger.clone(), dispatcher.clone(), parts.catalogue.clone(), stop.clone()));
        }
        let mut background = JoinSet::new();
        background.spawn(forward(dispatcher.clone(), directs, cancel_requests));
        background.spawn(waiting::defer_unstartable(dispatcher.clone(), acknowledger.clone()));
        let settings = parts.settings;
        Ok(Self { settings, job_service, dispatcher, acknowledger, phase, workers, intakes, background, stop, functions })
    }

    /// What HTTP may ask.
    #[must_use]
    pub fn job_service(&self) -> JobService {
        self.job_service.clone()
    }

    /// What waits to be sent.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        self.acknowledger.outbox.clone()
    }

    /// What the last handler of each model that got ready can be asked for; nothing before, and of those that do not say.
    #[must_use]
    pub fn functions(&self) -> watch::Receiver<Vec<Function>> {
        self.functions.clone()
    }

    /// Works until the first word of `orders`, then drains: nothing is received any more, what runs may go on for
    /// `drain_seconds`, the rest goes back to its queue. A second word ends the limit.
    ///
    /// # Errors
    /// [`HostFailure`] when a part of it ended before that: it drains then too, and whoever watches over it is to start it again.
    pub async fn run(mut self, mut orders: mpsc::Receiver<&'static str>) -> Result<(), HostFailure> {
        let failed = tokio::select! {
            order = orders.recv() => {
                self.drain(order.unwrap_or("no one steers the host any more"), orders).await;
                return Ok(());
            }
            failed = self.fail() => failed,
        };
        tracing::error!(problem = %failed, "a host that works no more must not look as if it did");
        self.drain("a part of the host ended", orders).await;
        Err(failed)
    }

    /// Resolves when a part ends that is to live as long as the host.
    async fn fail(&mut self) -> HostFailure {
        tokio::select! {
            failed = first_end("a worker", &mut self.workers) => failed,
            failed = first_end("an intake", &mut self.intakes) => failed,
            failed = first_end("a background task", &mut self.background) => failed,
        }
    }

    async fn drain(&mut self, order: &'static str, mut orders: mpsc::Receiver<&'static str>) {
        let limit = Duration::from_secs(self.settings.drain_seconds);
        tracing::info!(order, drain_seconds = limit.as_secs(), "draining: no new jobs; what runs may finish");
        self.stop.cancel();
        self.acknowledger.outbox.draining.cancel();
        let (messages, directs) = self.dispatcher.drain();
        for direct in directs {
            // A caller that is gone needs no answer.
            let _ = direct.answer.send(Ending::Drained);
        }
        self.phase.send_replace(Phase::Draining(later(tokio::time::Instant::now(), limit)));
        for in_flight in &messages {
            acknowledge::requeue(in_flight).await;
        }
        let ended = async {
            while self.workers.join_next().await.is_some() {}
            self.acknowledger.under_way.close();
            self.acknowledger.under_way.wait().await;
        };
        tokio::pin!(ended);
        let again = async {
            if let Some(order) = orders.recv().await {
                tracing::warn!(order, "handing back at once");
                self.phase.send_replace(Phase::Draining(tokio::time::Instant::now()));
                self.acknowledger.force_shutdown.cancel();
            }
            std::future::pending::<()>().await;
        };
        let last_call = tokio::time::sleep(limit);
        tokio::pin!(again, last_call);
        let mut hurried = false;
        loop {
            tokio::select! {
                () = &mut ended => break,
                () = &mut again => {}
                () = &mut last_call, if !hurried => {
                    hurried = true;
                    self.acknowledger.force_shutdown.cancel();
                }
            }
        }
        while self.intakes.join_next().await.is_some() {}
        tracing::info!("drained");
    }
}

/// A line of a handler's standard output: a report, or whatever a function prints, which is the operator's to read.
fn hear(line: &str, metrics: &Metrics, jobs: &Jobs, functions: &watch::Sender<Vec<Function>>) {
    match Report::decode(line) {
        Some(Report::Progress { job_id, step, steps }) => jobs.progress(&job_id, step, steps),
        Some(Report::Preview { job_id, preview }) => jobs.previews.show(&job_id, preview),
        Some(Report::Ready { model, load_seconds, capabilities, upscalers, segmenter }) => {
            metrics.model_loaded(model.as_str(), load_seconds);
            functions.send_modify(|functions| {
                functions.retain(|function| function.model != model);
                functions.extend(capabilities.map(|capabilities| Function { model, capabilities, upscalers, segmenter }));
            });
        }
        None => report::write_line(line),
    }
}

fn store_health(parts: &Parts) -> StoreHealth {
    let store_health = StoreHealth::new(parts.notification_sender.store.clone(), parts.catalogue.prefix());
    if parts.needs_store {
        store_health.probe();
    }
    store_health
}

fn retries(settings: &Settings, max_attempts: u32) -> Retries {
    Retries {
        max_attempts,
        initial_backoff: Duration::from_millis(settings.initial_backoff_ms),
        max_backoff: Duration::from_millis(settings.max_backoff_ms),
    }
}

async fn forward(
    dispatcher: Arc<Dispatcher>,
    mut directs: mpsc::Receiver<Direct>,
    mut cancels: mpsc::UnboundedReceiver<String>,
) {
    loop {
        tokio::select! {
            Some(direct) = directs.recv() => {
                if let Some(direct) = dispatcher.bring_direct(direct) {
                    let _ = direct.answer.send(Ending::Drained);
                }
            }
            Some(job_id) = cancels.recv() => dispatcher.cancel(&job_id),
            else => return,
        }
    }
}
