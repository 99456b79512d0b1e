//! Step `upscale`: enlarges the images of a job that asks for it, on the engine's thread.

use async_trait::async_trait;
use image::RgbImage;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::context::JobContext;
use super::infer::{CancelOnDrop, job_error};
use super::{Step, StepName};
use crate::job::Job;
use crate::job::outcome::JobError;
use crate::job::upscalers::Upscalers;
use atelier_engine::thread::EngineThread;
use atelier_engine::{EngineError, Image, Watch};

/// Settings of section `workflow.upscale`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Of one enlarged image.
    pub max_pixels: u64,
}

/// Step `upscale`; a job that does not ask for it passes through.
pub struct UpscaleStep {
    pub upscalers: Upscalers,
    pub engine: EngineThread,
}

#[async_trait]
impl Step for UpscaleStep {
    fn name(&self) -> StepName {
        StepName::Upscale
    }

    fn check(&self, job: &Job) -> Result<(), JobError> {
        self.upscalers.check(job)
    }

    async fn run(&self, context: &mut JobContext<'_>) -> Result<(), JobError> {
        let Some(upscale) = &context.job.upscale else { return Ok(()) };
        let upscaler = self.upscalers.of(upscale)?.name.as_str();
        // What a try-on sets behind its results, next to the person, stays as it is.
        let results = context.job.task.num_images().get() as usize;
        for image in context.images.iter_mut().take(results) {
            let Image { width_px, height_px, rgb, .. } = image;
            let rgb = std::mem::take(rgb);
            let Some(small) = RgbImage::from_raw(*width_px, *height_px, rgb) else {
                return Err(JobError::Internal { problem: "an image has fewer bytes than pixels".into() });
            };
            let large = self.upscaled(upscaler, small).await?;
            (image.width_px, image.height_px) = large.dimensions();
            image.rgb = large.into_raw();
        }
        Ok(())
    }
}

impl UpscaleStep {
    async fn upscaled(&self, name: &str, image: RgbImage) -> Result<RgbImage, JobError> {
        let watch = Watch::new(|_| ());
        let _cancel = CancelOnDrop(watch.clone());
        let (sender, upscaled) = oneshot::channel();
        self.engine.upscale(name, image, watch, move |result| drop(sender.send(result)));
        upscaled.await.unwrap_or(Err(EngineError::Gone)).map_err(job_error)
    }
}

/// Of a function without this step.
///
/// # Errors
/// [`JobError::Invalid`] when the job asks for it all the same.
pub(super) fn check_absent(job: &Job) -> Result<(), JobError> {
    if job.upscale.is_none() {
        return Ok(());
    }
    let problem = "this function has no step `upscale` in workflow.steps: leave it out, or add the step".into();
    Err(JobError::Invalid { field: "upscale".into(), problem })
}
