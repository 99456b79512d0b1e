//! Previews of the images in a latent batch.

use candle_core::Tensor;

use super::StableDiffusion;
use super::latent_batch::LatentBatch;
use super::tiling::Tiling;
use crate::Watch;
use crate::schedule::Schedule;

impl StableDiffusion {
    /// Shows each request whose watch wants it what step `index` of the schedule predicts: `output`, (N, 4, H, W), f32, of the latents before it.
    pub(super) fn preview(
        &self,
        latent_batch: &LatentBatch,
        output: &Tensor,
        (schedule, index): (&Schedule, usize),
        watches: &[&Watch],
        tiling: Tiling,
    ) {
        let step = (index as u32 + 1, schedule.steps.len() as u32);
        for (queued, watch) in watches.iter().enumerate() {
            let Some(place) = latent_batch.owners.iter().position(|owner| *owner == queued) else { continue };
            if !watch.wants_preview(step.0, step.1) {
                continue;
            }
            let first = |tensor: &Tensor| tensor.narrow(0, place, 1)?.contiguous();
            let prediction = self.checkpoint.schedule.prediction_type;
            let image = first(&latent_batch.latents)
                .and_then(|latents| schedule.predicted_image(index, prediction, &latents, &first(output)?));
            self.previewer.show(watch, step, image, |latents| self.decode(latents, tiling));
        }
    }
}
