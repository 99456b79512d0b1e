//! Where a flow starts from: noise, or an image with noise on it; and what a mask keeps of that image.

use candle_core::{Device, Result, Tensor};

use crate::noise::Noise;
use crate::qwen::packing::Grid;
use crate::qwen::references::Reference;
use crate::schedule::flow::FlowSchedule;
use crate::sd::kept::{Kept, mixed};
use crate::sd::vae_encoder::Moments;

/// An image to start from, ready for any number of seeds.
pub(super) struct Start {
    pub(super) moments: Moments,
    /// (1, 1, H, W) of latents, f32: 1 where it is generated anew, 0 where it is kept.
    pub(super) mask: Option<Tensor>,
}

/// What a request's images are given besides its text.
pub(super) struct Given {
    pub(super) grid: Grid,
    pub(super) references: Vec<Reference>,
    pub(super) start: Option<Start>,
}

/// The images of a request on their way through the steps.
pub(super) struct Denoising {
    /// One an image: (1, C, H, W), f32.
    pub(super) latents: Vec<Tensor>,
    /// Under a mask, one an image.
    kept: Vec<Kept>,
}

impl Denoising {
    /// Draws the first latents of every image. From an image it is in diffusers' order: what the encoder leaves open, then the noise on it.
    pub(super) fn begin(mut noise: Noise, schedule: &FlowSchedule, start: Option<&Start>, device: &Device) -> Result<Self> {
        let drawn = noise.draw(device)?;
        let places = 0..drawn.dim(0)?;
        let each = |all: &Tensor| places.clone().map(|place| all.narrow(0, place, 1)).collect::<Result<Vec<_>>>();
        let Some(Start { moments, mask }) = start else { return Ok(Self { latents: each(&drawn)?, kept: Vec::new() }) };
        let image = moments.sampled(&drawn)?;
        let noise = noise.draw(device)?;
        let latents = each(&mixed(&image, &noise, schedule.mixture(0))?)?;
        let Some(mask) = mask.clone() else { return Ok(Self { latents, kept: Vec::new() }) };
        let kept = Kept { image, noise, mask };
        let kept = places.map(|place| kept.of(|all| all.narrow(0, place, 1))).collect::<Result<Vec<_>>>()?;
        Ok(Self { latents, kept })
    }

    /// Puts back what a mask keeps, with the noise of the step that comes `next`; after the last there is none.
    pub(super) fn restore(&mut self, schedule: &FlowSchedule, next: u32) -> Result<()> {
        let mixture = (next < schedule.steps()).then(|| schedule.mixture(next as usize));
        for (latents, kept) in self.latents.iter_mut().zip(&self.kept) {
            *latents = kept.restore(latents, mixture)?;
        }
        Ok(())
    }
}
