//! Step `infer`: hands the task to the engine's thread and follows it.

use async_trait::async_trait;
use image::{GrayImage, Rgb, RgbImage};
use tokio::sync::oneshot;

use super::piece::{Piece, TryOnInputs};
use super::{Observer, Step, StepName};
use crate::engine::{EditRequest, EngineError, PaintRequest, Progress, Request, Watch};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::task::tryon::{Mode, TryOn};
use crate::job::task::{ModelName, Task};

pub struct Infer {
    /// The one model this function serves.
    pub model: ModelName,
    pub ability: Ability,
    pub observer: Observer,
}

/// What the function's model can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    Generate,
    /// In these modes, whose weights are loaded.
    TryOn(Vec<Mode>),
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
        let model = self.model.as_str();
        let invalid = |field: &str, problem| Err(JobError::Invalid { field: field.into(), problem });
        match (&job.task, &self.ability) {
            (Task::Generate(generate), Ability::Generate) if generate.model == self.model => Ok(()),
            (Task::Generate(generate), Ability::Generate) => {
                let asked = generate.model.as_str();
                invalid("model", format!("must be {model:?}, the model this function serves, got {asked:?}"))
            }
            (Task::TryOn(tryon), Ability::TryOn(modes)) if modes.contains(&tryon.mode) => Ok(()),
            (Task::TryOn(tryon), Ability::TryOn(modes)) => {
                let loaded: Vec<&str> = modes.iter().map(|mode| mode.as_str()).collect();
                let (loaded, asked) = (loaded.join(", "), tryon.mode.as_str());
                invalid("mode", format!("must be {loaded}, what this function has the weights of, got {asked}"))
            }
            (Task::TryOn(_), Ability::Generate) => invalid(
                "task",
                format!(
                    "this function serves {model}, which paints from text; try-on needs a try-on model: send the job to a \
                     function that serves one"
                ),
            ),
            (Task::Generate(_), Ability::TryOn(_)) => invalid(
                "task",
                format!(
                    "this function serves {model}, which does try-ons (task tryon); send the job to a function that paints from text"
                ),
            ),
        }
    }

    async fn run(&self, piece: &mut Piece<'_>) -> Result<(), JobError> {
        let request = request(piece)?;
        let Some(seat) = piece.seat.take() else {
            return Err(JobError::Internal { problem: "the job has no seat at the engine".into() });
        };
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
        piece.watch = Some(watch.clone());
        let (sender, painted) = oneshot::channel();
        seat.paint(request, watch, move |result| drop(sender.send(result)));
        let painted = painted.await;
        piece.pictures = painted.unwrap_or(Err(EngineError::Gone)).map_err(job_error)?;
        progress.report(90);
        Ok(())
    }
}

fn request(piece: &Piece<'_>) -> Result<Request, JobError> {
    match &piece.job.task {
        Task::Generate(generate) => {
            let not_fetched = [
                ("lora", piece.loras.len() != generate.loras.len()),
                ("embeddings", piece.embeddings.len() != generate.embeddings.len()),
            ];
            if let Some((field, _)) = not_fetched.into_iter().find(|(_, missing)| *missing) {
                let problem = "this function takes no files: its configuration has no `fetch` step".into();
                return Err(JobError::Invalid { field: field.into(), problem });
            }
            if piece.start.is_some() != generate.start.is_some() {
                let problem = "this function takes no pictures: its configuration has no `preprocess` step".into();
                return Err(JobError::Invalid { field: "init_image".into(), problem });
            }
            let (loras, embeddings, start) = (piece.loras.clone(), piece.embeddings.clone(), piece.start.clone());
            Ok(Request::Generate(PaintRequest { task: generate.clone(), loras, embeddings, start }))
        }
        Task::TryOn(tryon) => {
            let Some(inputs) = &piece.tryon else {
                let problem = "this function takes no try-on: its configuration has no `preprocess` step".into();
                return Err(JobError::Invalid { field: "task".into(), problem });
            };
            Ok(Request::TryOn(edit(tryon, inputs)))
        }
    }
}

fn edit(tryon: &TryOn, TryOnInputs { person, garments, mask }: &TryOnInputs) -> EditRequest {
    let mut images = vec![mask.as_ref().map_or_else(|| person.clone(), |mask| painted_green(person, mask))];
    images.extend(garments.iter().cloned());
    let own = tryon.prompt.as_ref().map(|prompt| prompt.as_str().trim()).filter(|prompt| !prompt.is_empty());
    EditRequest {
        images,
        prompt: own.map_or_else(|| usual_instruction(garments.len()), str::to_owned),
        negative_prompt: tryon.negative_prompt.as_str().to_owned(),
        steps: tryon.steps.get(),
        guidance_scale: tryon.guidance_scale.get(),
        mode: tryon.mode,
        seeds: (0..u64::from(tryon.num_images.get())).map(|picture| tryon.seed.get() + picture).collect(),
        width_px: person.width(),
        height_px: person.height(),
    }
}

/// The callers of the service that this replaces send a person with the part that is to be dressed painted green; the instruction
/// speaks of that, so a mask is painted the same way.
fn painted_green(person: &RgbImage, mask: &GrayImage) -> RgbImage {
    let mut masked = person.clone();
    for (pixel, mask) in masked.pixels_mut().zip(mask.pixels()) {
        if mask.0[0] >= 128 {
            *pixel = Rgb([0, 255, 0]);
        }
    }
    masked
}

/// What a job is painted by that says nothing itself.
fn usual_instruction(garments: usize) -> String {
    let worn = match garments {
        1 => "the garment of image 2".to_owned(),
        more => format!("the garments of images 2 to {}", more + 1),
    };
    format!(
        "Dress the person in image 1 in {worn}. If a part of image 1 is green, it only tells which part of the body is meant. Keep the \
         garment's colour, pattern, texture and cut. Keep the person's face, hair, skin, body, pose and the background as they are."
    )
}

/// The contract's milestones, in percent: the one that this denoising step reaches, if any.
fn milestone(Progress { step, steps }: Progress) -> Option<u8> {
    let reached = |step: u32, percent: u8| u64::from(step) * 100 >= u64::from(steps) * u64::from(percent);
    [75, 50, 25].into_iter().find(|percent| reached(step, *percent) && !reached(step.saturating_sub(1), *percent))
}

fn job_error(error: EngineError) -> JobError {
    match error {
        EngineError::Lora { index, problem } => JobError::Input { field: format!("lora[{index}]"), problem, cause: None },
        EngineError::Embedding { index, problem } => {
            JobError::Input { field: format!("embeddings[{index}]"), problem, cause: None }
        }
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
