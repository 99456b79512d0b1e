//! The life of one handler process: its start, one invocation after the other, its end.

use std::time::{Duration, Instant};

use super::{Phase, Worker};
use crate::host::cause::Cause;
use crate::host::dispatch::{Next, Slot, Unloading};
use crate::host::process::Process;
use crate::host::runtime_api::{RuntimeApi, Started};
use crate::job::task::ModelName;

/// How a handler's life ended.
pub(super) struct Life {
    pub(super) cause: Cause,
    /// It had answered at least one invocation.
    pub(super) served: bool,
    /// Its own words, where it had some.
    pub(super) why: Option<String>,
}

impl Life {
    fn over(cause: Cause) -> Self {
        Self { cause, served: false, why: None }
    }

    fn because(cause: Cause, why: String) -> Self {
        Self { cause, served: false, why: Some(why) }
    }
}

impl Worker {
    /// Starts a handler and works with it until one of the two ends.
    pub(super) async fn life(&mut self) -> Life {
        let api = match RuntimeApi::start(&self.program.function_name).await {
            Ok(api) => api,
            Err(error) => return Life::because(Cause::Init, format!("no port for its Runtime API ({error})")),
        };
        let launched = self.launcher.launch(&self.program, api.address, self.gpu.as_deref(), self.listener.clone());
        let mut process = match launched.await {
            Ok(process) => process,
            Err(error) => {
                return Life::because(Cause::Init, format!("{} cannot be started ({error})", self.program.path.display()));
            }
        };
        tracing::info!(handler = self.index, pid = process.id(), runtime_api = %api.address, "a handler was started");
        if let Err(life) = self.get_ready(&api, &mut process).await {
            return life;
        }
        let swapped = self.dispatcher.ready(self.index);
        tracing::info!(handler = self.index, pid = process.id(), "a handler is ready");
        if let Some(took) = swapped {
            let model = self.model.as_str();
            tracing::info!(model, handler = self.index, took_ms = took.as_millis() as u64, "a model was swapped in");
            self.metrics.swapped(model, took);
        }
        self.serve(&api, &mut process).await
    }

    async fn get_ready(&mut self, api: &RuntimeApi, process: &mut Process) -> Result<(), Life> {
        let limit = Duration::from_millis(self.settings.init_timeout_ms);
        let problem = tokio::select! {
            started = api.started() => match started {
                Started::Ready => return Ok(()),
                Started::Failed(error) => error.to_string(),
                Started::NotYet => "its Runtime API is gone".to_owned(),
            },
            status = process.ended() => return Err(Life::over(Cause::of(status, process.oom_kills()))),
            () = tokio::time::sleep(limit) => format!("it asked for no event within {} s", limit.as_secs()),
            () = Phase::over(self.phase.clone()) => {
                self.end(process).await;
                return Err(Life::over(Cause::Stopped));
            }
        };
        // One that said why it cannot start ends by itself.
        self.end(process).await;
        Err(Life::because(Cause::Init, problem))
    }

    async fn serve(&mut self, api: &RuntimeApi, process: &mut Process) -> Life {
        let mut served = false;
        let dispatcher = self.dispatcher.clone();
        loop {
            let next = tokio::select! {
                biased;
                status = process.ended() => return Life { cause: Cause::of(status, process.oom_kills()), served, why: None },
                () = Phase::over(self.phase.clone()) => {
                    self.end(process).await;
                    return Life { cause: Cause::Stopped, served, why: None };
                }
                next = dispatcher.take(self.index) => next,
            };
            let assignment = match next {
                Next::Run(assignment) => assignment,
                Next::Unload(unloading) => {
                    self.unload(process, unloading).await;
                    return Life { cause: Cause::Unloaded, served, why: None };
                }
            };
            let Some(assignment) = self.begin(assignment) else {
                self.dispatcher.set(self.index, Slot::Idle);
                continue;
            };
            let (ended, cause) = self.invoke(api, process, assignment).await;
            served |= ended;
            if let Some(cause) = cause {
                return Life { cause, served, why: None };
            }
            self.dispatcher.set(self.index, Slot::Idle);
        }
    }

    /// Ends an idle handler whose memory another one is to have; returns when its process is gone.
    async fn unload(&self, process: &mut Process, Unloading { wanted, unused }: Unloading) {
        let model = self.model.as_str();
        let wanted = self.models.get(wanted).map(ModelName::as_str);
        let unused_ms = unused.as_millis() as u64;
        tracing::info!(model, handler = self.index, wanted, unused_ms, "a model is unloaded to make room for another");
        let begun = Instant::now();
        self.end(process).await;
        let took_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(model, handler = self.index, took_ms, "a model was unloaded");
    }

    /// Asks the process to end, and makes it after the grace.
    pub(super) async fn end(&self, process: &mut Process) {
        process.terminate();
        if tokio::time::timeout(self.limits().kill_grace, process.ended()).await.is_err() {
            process.kill();
            process.ended().await;
        }
    }
}
