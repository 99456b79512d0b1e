//! Keeps handler processes alive: starts them, gives them work, ends them, starts them again.

pub mod invoke;
pub mod life;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::cause::Cause;
use super::dispatch::Dispatcher;
use super::dispatch::acknowledge::Acknowledger;
use super::process::{Launcher, Listener, Program};
use crate::backoff::Backoff;
use crate::job::task::ModelName;
use crate::metrics::Metrics;

/// Settings of section `host.handler`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Milliseconds until a handler must ask for its first event: loading the model and warming up.
    pub init_timeout_ms: u64,
    /// Milliseconds that a handler has for each job of an event; it is ended when they are over.
    pub job_timeout_ms: u64,
    /// Milliseconds between SIGTERM and SIGKILL.
    pub kill_grace_ms: u64,
    /// Milliseconds that the first pause before a new start lasts at most; each further one can be twice as long.
    pub initial_backoff_ms: u64,
    /// Milliseconds that a pause lasts at most.
    pub max_backoff_ms: u64,
    /// MiB that a handler is given to plan with.
    pub memory_mib: u32,
    /// Names of variables that a handler gets on top of what it needs.
    pub environment: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            init_timeout_ms: 900_000,
            job_timeout_ms: 900_000,
            kill_grace_ms: 10_000,
            initial_backoff_ms: 500,
            max_backoff_ms: 30_000,
            memory_mib: 4096,
            environment: Vec::new(),
        }
    }
}

/// When the handlers are to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// No new work; what runs at this moment is handed back.
    Draining(Instant),
}

impl Phase {
    /// Resolves when the host drains, or is gone.
    pub(super) async fn over(mut phase: watch::Receiver<Self>) {
        let _ = phase.wait_for(|phase| *phase != Self::Running).await;
    }
}

/// One place for a handler, with what it needs to keep one there.
pub struct Worker {
    pub index: usize,
    pub program: Program,
    /// That its handler serves.
    pub model: ModelName,
    /// Of all models, by their places in the catalogue.
    pub models: Arc<[ModelName]>,
    /// The value of `CUDA_VISIBLE_DEVICES`, where the handler is to see one GPU only.
    pub gpu: Option<String>,
    pub settings: Settings,
    pub launcher: Launcher,
    pub dispatcher: Arc<Dispatcher>,
    pub acknowledger: Acknowledger,
    pub listener: Listener,
    pub metrics: Metrics,
    pub phase: watch::Receiver<Phase>,
    pub cancels: mpsc::UnboundedReceiver<String>,
}

impl Worker {
    /// Keeps one handler alive until the host drains; returns when it has ended.
    pub async fn keep(mut self) {
        let first = self.settings.initial_backoff_ms;
        let longest = self.settings.max_backoff_ms;
        let mut backoff = Backoff::new(Duration::from_millis(first), Duration::from_millis(longest));
        loop {
            tokio::select! {
                biased;
                () = self.dispatcher.enter(self.index) => {}
                () = Phase::over(self.phase.clone()) => return,
            }
            let life = self.life().await;
            if life.cause == Cause::Stopped {
                return;
            }
            if life.served || life.cause == Cause::Unloaded {
                backoff.reset();
            }
            if life.cause == Cause::Unloaded {
                continue;
            }
            self.metrics.handler_ended(life.cause.as_str());
            let pause = backoff.next_pause();
            let why = life.why.unwrap_or_else(|| life.cause.to_string());
            tracing::error!(
                handler = self.index,
                cause = life.cause.as_str(),
                why,
                pause_ms = pause.as_millis() as u64,
                "a handler ended; another is started after a pause"
            );
            self.dispatcher.fell(self.index, &why);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = Phase::over(self.phase.clone()) => return,
            }
        }
    }
}
