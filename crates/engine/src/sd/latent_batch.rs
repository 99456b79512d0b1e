//! The latent batch: images of one or several queued requests on their way through the denoising steps together.

use candle_core::{Device, Result, Tensor};

use super::conditioning::Conditioning;
use super::kept::Kept;
use crate::noise::Noise;
use crate::schedule::step::History;

pub(super) struct LatentBatch {
    /// The queued request that each image belongs to, by its place.
    pub(super) owners: Vec<usize>,
    /// (N, channels, height, width), f32.
    pub(super) latents: Tensor,
    /// A row an image.
    pub(super) text: Conditioning,
    /// A generator an image.
    pub(super) noise: Noise,
    /// Of the steps before, for schedules that look back.
    pub(super) history: History,
    /// Under a mask.
    pub(super) kept: Option<Kept>,
    /// What the last complete look of a step cache has left: of each pass of the UNet, the rows of all its predictions one after the other.
    pub(super) deep: Vec<Tensor>,
    /// (N, 4 or 5, height, width), f32: an image to edit, or mask and masked image, for a UNet that looks at them.
    pub(super) added: Option<Tensor>,
}

impl LatentBatch {
    /// A latent batch of noise as it was drawn, for [`Self::begin`]. `texts`: a request's own prompts each; `seeds`: a request's images each;
    /// `shape`: (channels, height, width) of one image's latents.
    pub(super) fn new(
        texts: &[Conditioning],
        seeds: &[Vec<u64>],
        shape: (usize, usize, usize),
        device: &Device,
    ) -> Result<Self> {
        let mut noise = Noise::new(seeds.iter().flatten().copied(), shape);
        let latents = noise.draw(device)?;
        let owners = seeds.iter().enumerate().flat_map(|(queued, seeds)| seeds.iter().map(move |_| queued)).collect();
        let counts: Vec<usize> = seeds.iter().map(Vec::len).collect();
        let text = Conditioning::for_images(texts, &counts)?;
        Ok(Self { owners, latents, text, noise, history: History::default(), kept: None, deep: Vec::new(), added: None })
    }

    /// What the UNet looks at: the latents times `scale`, and what stands next to them.
    pub(super) fn input(&self, scale: f64) -> Result<Tensor> {
        let latents = (&self.latents * scale)?;
        self.added.as_ref().map_or_else(|| Ok(latents.clone()), |added| Tensor::cat(&[&latents, added], 1))
    }

    /// Takes the images of these queued requests away; the others stay as they are.
    pub(super) fn remove(&mut self, queued_requests: &[usize]) -> Result<()> {
        let all = self.owners.len();
        let kept: Vec<usize> = (0..all).filter(|image| !queued_requests.contains(&self.owners[*image])).collect();
        if kept.len() == all {
            return Ok(());
        }
        self.owners = kept.iter().map(|image| self.owners[*image]).collect();
        self.noise.keep(&kept);
        if kept.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = kept.iter().map(|image| *image as u32).collect();
        let images = Tensor::from_vec(rows, kept.len(), self.latents.device())?;
        self.latents = self.latents.index_select(&images, 0)?;
        let choose = |tensor: &Tensor| tensor.index_select(&images, 0);
        self.text = self.text.of(choose)?;
        self.history = self.history.of(choose)?;
        self.kept = self.kept.as_ref().map(|kept| kept.of(choose)).transpose()?;
        self.added = self.added.as_ref().map(choose).transpose()?;
        for deep in &mut self.deep {
            let predictions = deep.chunk(deep.dim(0)? / all, 0)?;
            *deep = Tensor::cat(&predictions.iter().map(choose).collect::<Result<Vec<_>>>()?, 0)?;
        }
        Ok(())
    }

    /// The latents of one request's images; none when it was taken away. A request's images stand in a row.
    pub(super) fn latents_of(&self, queued: usize) -> Result<Option<Tensor>> {
        let Some(start) = self.owners.iter().position(|owner| *owner == queued) else { return Ok(None) };
        let count = self.owners.iter().filter(|owner| **owner == queued).count();
        self.latents.narrow(0, start, count).map(Some)
    }
}
