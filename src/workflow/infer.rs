//! Step `infer`: hands the task to the engine's thread and follows it.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tracing::Span;

use super::context::JobContext;
use super::previews::Previews;
use super::request::request;
use super::{Step, StepName};
use crate::job::capabilities::Capabilities;
use crate::job::outcome::JobError;
use crate::job::task::ModelName;
use crate::job::upscalers::Upscalers;
use crate::job::{Job, JobId, trace};
use atelier_engine::{EngineError, Progress, Request, Watch};

/// Hears of every denoising step of a job; returns at once.
pub type StepObserver = Arc<dyn Fn(&JobId, Progress) + Send + Sync>;

/// Follows all jobs.
#[derive(Clone)]
pub struct Observer {
    pub step: StepObserver,
    /// None: nobody looks at jobs while they run.
    pub previews: Option<Arc<Previews>>,
}

pub struct Infer {
    /// The one model this function serves.
    pub model: ModelName,
    pub capabilities: Capabilities,
    pub upscalers: Upscalers,
    pub observer: Observer,
}

/// Stops the engine when the step is dropped (deadline, shutdown): no one waits for the images any more.
pub(super) struct CancelOnDrop(pub(super) Watch);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[async_trait]
impl Step for Infer {
    fn name(&self) -> StepName {
        StepName::Infer
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        self.capabilities.check(&self.model, job)
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let request = request(context.decoded()?);
        if let Some(upscale) = &context.job.upscale {
            let (width_px, height_px) = size_px(&request);
            self.upscalers.check_size(upscale, width_px, height_px)?;
        }
        let Some(batch_slot) = context.batch_slot.take() else {
            return Err(JobError::Internal { problem: "the job has no batch slot at the engine".into() });
        };
        let observer = Arc::clone(&self.observer.step);
        let job_id = context.job.id.clone();
        let progress = context.progress.reporter();
        progress.report(0);
        let follow = progress.clone();
        let span = Span::current();
        let watch = Watch::new(move |now| {
            observer(&job_id, now);
            trace::note_denoising_step(&span, now.step, now.steps);
            if let Some(percent) = milestone(now) {
                follow.report(percent);
            }
        });
        let watch = match &self.observer.previews {
            Some(previews) => previews.follow(context.job, watch),
            None => watch,
        };
        let _cancel = CancelOnDrop(watch.clone());
        context.watch = Some(watch.clone());
        let (sender, generated) = oneshot::channel();
        batch_slot.generate(request, watch, move |result| drop(sender.send(result)));
        let generated = generated.await;
        context.images = generated.unwrap_or(Err(EngineError::Gone)).map_err(job_error)?;
        progress.report(90);
        Ok(())
    }
}

/// Width and height of what is generated.
fn size_px(request: &Request) -> (u32, u32) {
    match request {
        Request::Generate(generate) => (generate.width_px, generate.height_px),
        Request::Edit(edit) => (edit.width_px, edit.height_px),
    }
}

/// The contract's milestones, in percent: the one that this denoising step reaches, if any.
fn milestone(Progress { step, steps }: Progress) -> Option<u8> {
    let reached = |step: u32, percent: u8| u64::from(step) * 100 >= u64::from(steps) * u64::from(percent);
    [75, 50, 25].into_iter().find(|percent| reached(step, *percent) && !reached(step.saturating_sub(1), *percent))
}

/// What an error of the engine is to a job.
pub(super) fn job_error(error: EngineError) -> JobError {
    match error {
        EngineError::Lora { index, problem } => JobError::Input { field: format!("lora[{index}]"), problem, cause: None },
        EngineError::Embedding { index, problem } => {
            JobError::Input { field: format!("embeddings[{index}]"), problem, cause: None }
        }
        EngineError::Request { field, problem } => JobError::Invalid { field: field.into(), problem },
        EngineError::OutOfMemory { problem } => JobError::OutOfMemory { problem },
        EngineError::NotFinite { problem } => JobError::NotFinite { problem },
        EngineError::Fatal { problem } => JobError::FatalDeviceError { problem },
        EngineError::Cancelled => JobError::Cancelled,
        error @ (EngineError::Checkpoint { .. }
        | EngineError::Panicked(_)
        | EngineError::Gone
        | EngineError::NoClassifier
        | EngineError::NoUpscaler { .. }
        | EngineError::NoSegmenter
        | EngineError::Candle(_)) => JobError::Generation { problem: error.to_string(), cause: Some(Box::new(error)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_milestone_is_reported_once_and_in_order() {
        for steps in 4..=50 {
            let milestones: Vec<u8> = (1..=steps).filter_map(|step| milestone(Progress { step, steps })).collect();
            assert_eq!(milestones, [25, 50, 75], "{steps} steps");
        }
        let milestones: Vec<u8> = (1..=2).filter_map(|step| milestone(Progress { step, steps: 2 })).collect();
        assert_eq!(milestones, [50, 75], "two steps: the highest that each step reaches");
    }
}
