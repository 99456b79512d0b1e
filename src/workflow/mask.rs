//! Step `mask`: finds the clothes in the person's image of a try-on that asks for it, and makes the mask that nobody sent.

use async_trait::async_trait;
use image::{GrayImage, RgbImage};
use tokio::sync::oneshot;

use super::context::{Decoded, Inputs, JobContext};
use super::infer::job_error;
use super::{Step, StepName};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::segmenter::Segmenter;
use crate::job::task::Task;
use crate::job::task::auto_mask::{AutoMask, DilatePx, MadeMask};
use atelier_engine::EngineError;
use atelier_engine::segmenter::mask::mask;
use atelier_engine::thread::EngineThread;

/// Of the image at least, before the mask is made wider: fewer pixels are no garment but noise of the segmenter.
const MIN_COVERAGE: f64 = 1e-3;
/// Above it next to nothing of the image stays as it was, and the record says so.
const LARGE_COVERAGE: f64 = 0.9;
/// One pixel wider for so many of the shorter side.
const SHORT_SIDE_PER_DILATED_PX: u32 = 100;

/// Step `mask`; a job that does not ask for it passes through.
pub struct MaskStep {
    pub segmenter: Segmenter,
    pub engine: EngineThread,
}

#[async_trait]
impl Step for MaskStep {
    fn name(&self) -> StepName {
        StepName::Mask
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        self.segmenter.check(job)
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let Inputs::Decoded(Decoded::TryOn(tryon, inputs)) = &mut context.inputs else { return Ok(()) };
        let Some(auto_mask) = &tryon.auto_mask else { return Ok(()) };
        let labels = self.labels(inputs.person.clone()).await?;
        let (mask, made) = self.made(auto_mask, &labels)?;
        inputs.mask = Some(mask);
        context.made_mask = Some(made);
        Ok(())
    }
}

impl MaskStep {
    async fn labels(&self, person: RgbImage) -> Result<GrayImage, JobError> {
        let (sender, segmented) = oneshot::channel();
        self.engine.segment(person, move |result| drop(sender.send(result)));
        segmented.await.unwrap_or(Err(EngineError::Gone)).map_err(job_error)
    }

    fn made(&self, auto_mask: &AutoMask, labels: &GrayImage) -> Result<(GrayImage, MadeMask), JobError> {
        let chosen = self.segmenter.of(auto_mask)?;
        let coverage_of = |pixels: usize| pixels as f64 / labels.as_raw().len().max(1) as f64;
        let names = |places: &[usize]| places.iter().map(|place| self.segmenter.classes[*place].clone()).collect::<Vec<_>>();
        let mut pixels_of = [0_usize; 256];
        for label in labels.as_raw() {
            pixels_of[usize::from(*label)] += 1;
        }
        let found: Vec<usize> = chosen.iter().copied().filter(|place| pixels_of[*place] > 0).collect();
        let pixels: usize = found.iter().map(|place| pixels_of[*place]).sum();
        if coverage_of(pixels) < MIN_COVERAGE {
            let problem = format!(
                "shows no {} that a mask could be made of: send an image that does, name other classes in auto_mask.classes, or send a mask",
                names(&chosen).join(", ")
            );
            return Err(JobError::Input { field: "person".into(), problem, cause: None });
        }
        let short_px = labels.width().min(labels.height());
        let dilate_px = auto_mask.dilate_px.map_or_else(|| short_px.div_ceil(SHORT_SIDE_PER_DILATED_PX), DilatePx::get);
        let mask = mask(labels, &found, dilate_px);
        let coverage = coverage_of(mask.pixels().filter(|value| value.0[0] > 0).count());
        let note = (coverage > LARGE_COVERAGE).then(|| {
            let percent = (coverage * 100.0).floor();
            format!("the mask covers {percent} % of the image: next to nothing of it stays as it was")
        });
        if let Some(note) = &note {
            tracing::warn!(note, "a mask is very large");
        }
        let licence = self.segmenter.licence.clone();
        // As many places as anyone reads.
        let coverage = (coverage * 1e4).round() / 1e4;
        Ok((mask, MadeMask { classes: names(&found), dilate_px, coverage, note, licence }))
    }
}

/// Of a function without this step.
///
/// # Errors
/// [`JobError::Invalid`] when the job asks for it all the same.
pub(super) fn check_absent(job: &Job) -> Result<(), JobError> {
    if !matches!(&job.task, Task::TryOn(tryon) if tryon.auto_mask.is_some()) {
        return Ok(());
    }
    let problem = "this function has no step `mask` in workflow.steps: send a mask, or add the step".into();
    Err(JobError::Invalid { field: "auto_mask".into(), problem })
}
