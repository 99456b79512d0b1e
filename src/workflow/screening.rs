//! Steps `screen` and `check`: what is asked for, and what was generated, goes past the safety gate.
//!
//! - `screen` looks at the prompt and the input images before anything is generated, `check` at the images behind it.
//! - First what costs nothing, then the classifier on the engine's thread, then the moderator outside.
//! - Whoever cannot be asked lets nothing through.

use std::sync::Arc;

use async_trait::async_trait;
use image::RgbImage;
use tokio::sync::oneshot;

use super::context::{Decoded, JobContext};
use super::infer::job_error;
use super::{Step, StepName};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::safety::Stage;
use crate::safety::gate::{Gate, Judgment};
use crate::safety::moderator::SmallImage;
use atelier_engine::EngineError;
use atelier_engine::thread::EngineThread;

/// Step `screen`.
pub struct Screen {
    pub gate: Arc<Gate>,
    pub engine: EngineThread,
}

/// Step `check`.
pub struct Check {
    pub gate: Arc<Gate>,
    pub engine: EngineThread,
}

/// Images that are looked at, by what a caller knows them as.
#[derive(Default)]
struct Seen {
    fields: Vec<String>,
    images: Vec<RgbImage>,
}

#[async_trait]
impl Step for Screen {
    fn name(&self) -> StepName {
        StepName::Screen
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        self.gate.tryon().check(job)
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        if !self.gate.is_on() {
            return Ok(());
        }
        if let Some(judgment) = self.gate.prompt(context.job) {
            note(context, judgment)?;
        }
        if !self.gate.looks_at_images() {
            return Ok(());
        }
        let seen = inputs(context.decoded()?);
        judge(&self.gate, &self.engine, context, Stage::Input, seen).await
    }
}

#[async_trait]
impl Step for Check {
    fn name(&self) -> StepName {
        StepName::Check
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        if !self.gate.looks_at_images() {
            return Ok(());
        }
        let mut seen = Seen::default();
        for (number, image) in context.images.iter().enumerate() {
            let copy = RgbImage::from_raw(image.width_px, image.height_px, image.rgb.clone());
            let copy = copy.ok_or_else(|| JobError::Internal { problem: "an image has fewer bytes than pixels".into() })?;
            seen.push(format!("image[{number}]"), copy);
        }
        judge(&self.gate, &self.engine, context, Stage::Image, seen).await
    }
}

impl Seen {
    fn push(&mut self, field: String, image: RgbImage) {
        self.fields.push(field);
        self.images.push(image);
    }
}

/// The images that a job starts from, as they were sent but for their size.
fn inputs(decoded: &Decoded<'_>) -> Seen {
    let mut seen = Seen::default();
    match decoded {
        Decoded::Generate(_, inputs) => {
            if let Some(start) = &inputs.start {
                seen.push("init_image".to_owned(), start.rgb.clone());
            }
            for (index, control) in inputs.controls.iter().enumerate() {
                seen.push(format!("controlnets[{index}].image"), control.sent.clone());
            }
            for (index, images) in inputs.image_prompts.iter().enumerate() {
                for (place, image) in images.iter().enumerate() {
                    seen.push(format!("ip_adapters[{index}].images[{place}]"), image.clone());
                }
            }
        }
        Decoded::TryOn(_, inputs) => {
            seen.push("person".to_owned(), inputs.person.clone());
            for (index, garment) in inputs.garments.iter().enumerate() {
                seen.push(format!("garments[{index}]"), garment.clone());
            }
        }
        Decoded::Edit(_, inputs) => {
            for (index, image) in inputs.images.iter().enumerate() {
                seen.push(format!("images[{index}]"), image.clone());
            }
        }
    }
    seen
}

/// Asks the classifier, then the moderator.
async fn judge(
    gate: &Gate,
    engine: &EngineThread,
    context: &mut JobContext<'_>,
    stage: Stage,
    Seen { fields, images }: Seen,
) -> Result<(), JobError> {
    let images: Arc<[RgbImage]> = images.into();
    if let Some(checker) = &gate.checker
        && !images.is_empty()
    {
        let scores = classify(engine, Arc::clone(&images)).await?;
        note(context, gate.images(checker, stage, &fields, &scores, context.job))?;
    }
    let Some(moderator) = &gate.moderator else { return Ok(()) };
    let small = tokio::task::spawn_blocking(move || {
        fields.iter().zip(&*images).map(|(field, image)| SmallImage::of(field, image)).collect::<Result<Vec<_>, _>>()
    });
    let small = small.await.unwrap_or_else(|panic| Err(panic.to_string()));
    let small = small.map_err(|problem| JobError::Internal { problem: format!("an image for the moderator: {problem}") })?;
    let answer = moderator.ask(context.job, stage, &small).await?;
    note(context, gate.answer(stage, &answer, context.job))
}

/// A list of scores an image.
async fn classify(engine: &EngineThread, images: Arc<[RgbImage]>) -> Result<Vec<Vec<f32>>, JobError> {
    let (sender, classified) = oneshot::channel();
    engine.classify(images, move |scores| drop(sender.send(scores)));
    classified.await.unwrap_or(Err(EngineError::Gone)).map_err(job_error)
}

/// Keeps what was found for the record.
fn note(context: &mut JobContext<'_>, Judgment { check, block }: Judgment) -> Result<(), JobError> {
    context.checks.push(check);
    block.map_or(Ok(()), |block| Err(JobError::Blocked(block)))
}
