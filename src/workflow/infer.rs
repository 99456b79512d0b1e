//! Step `infer`: hands the task to the engine's thread and follows it.

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::piece::Piece;
use super::{Observer, Step, StepName};
use crate::engine::thread::EngineThread;
use crate::engine::{EngineError, PaintRequest, Progress, Watch};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::task::{Generate, ModelName, Task};

pub struct Infer {
    pub engine: EngineThread,
    /// The one model this function serves.
    pub model: ModelName,
    pub observer: Observer,
}

/// Stops the engine when the step is dropped (deadline, shutdown): nobody waits for the pictures any more.
struct CancelOnDrop(Watch);

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
        let generate = self.generate(&job.task)?;
        if generate.model == self.model {
            return Ok(());
        }
        let problem =
            format!("must be {:?}, the model this function serves, got {:?}", self.model.as_str(), generate.model.as_str());
        Err(JobError::Invalid { field: "model".into(), problem })
    }

    async fn run(&mut self, piece: &mut Piece<'_>) -> Result<(), JobError> {
        let generate = self.generate(&piece.job.task)?;
        if piece.loras.len() != generate.loras.len() {
            let problem = "this function takes no LoRA: its configuration has no `fetch` step".into();
            return Err(JobError::Invalid { field: "lora".into(), problem });
        }
        let request = PaintRequest { task: generate.clone(), loras: piece.loras.clone() };
        let (observer, job_id, progress) = (self.observer.clone(), piece.job.id.clone(), piece.progress.reporter());
        progress.report(0);
        let follow = progress.clone();
        let watch = Watch::new(move |now| {
            observer(&job_id, now);
            if let Some(percent) = milestone(now) {
                follow.report(percent);
            }
        });
        let _cancel = CancelOnDrop(watch.clone());
        let (sender, painted) = oneshot::channel();
        self.engine.paint(request, watch.clone(), move |result| drop(sender.send(result)));
        let painted = painted.await;
        piece.pace = watch.pace();
        piece.pictures = painted.unwrap_or(Err(EngineError::Gone)).map_err(job_error)?;
        progress.report(90);
        Ok(())
    }
}

impl Infer {
    /// The task, if it is one that this function's engine can do.
    fn generate<'a>(&self, task: &'a Task) -> Result<&'a Generate, JobError> {
        match task {
            Task::Generate(generate) => Ok(generate),
            Task::TryOn(_) => {
                let model = self.model.as_str();
                let problem = format!(
                    "this function serves {model}, which paints from text; try-on needs a try-on model: send the job to a \
                     function that serves one"
                );
                Err(JobError::Invalid { field: "task".into(), problem })
            }
        }
    }
}

/// The contract's milestones, in percent: the one that this denoising step reaches, if any.
fn milestone(Progress { step, steps }: Progress) -> Option<u8> {
    let reached = |step: u32, percent: u8| u64::from(step) * 100 >= u64::from(steps) * u64::from(percent);
    [75, 50, 25].into_iter().find(|percent| reached(step, *percent) && !reached(step.saturating_sub(1), *percent))
}

fn job_error(error: EngineError) -> JobError {
    match error {
        EngineError::Lora { index, problem } => JobError::Input { field: format!("lora[{index}]"), problem, cause: None },
        EngineError::Request { field, problem } => JobError::Invalid { field: field.into(), problem },
        EngineError::OutOfMemory { problem } => JobError::OutOfMemory { problem },
        EngineError::Fatal { problem } => JobError::EngineLost { problem },
        EngineError::Cancelled => JobError::Cancelled,
        error @ (EngineError::Checkpoint { .. } | EngineError::Panicked(_) | EngineError::Gone | EngineError::Candle(_)) => {
            JobError::Painting { problem: error.to_string(), cause: Some(Box::new(error)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_milestone_is_told_once_and_in_order() {
        for steps in 4..=50 {
            let told: Vec<u8> = (1..=steps).filter_map(|step| milestone(Progress { step, steps })).collect();
            assert_eq!(told, [25, 50, 75], "{steps} steps");
        }
        let told: Vec<u8> = (1..=2).filter_map(|step| milestone(Progress { step, steps: 2 })).collect();
        assert_eq!(told, [50, 75], "two steps: the highest that each step reaches");
    }
}
