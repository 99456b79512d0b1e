//! What a mask keeps of the image that a generation starts from.

use candle_core::{Device, Result, Tensor};

/// A mask's pixels from here on are generated anew.
pub(crate) const GENERATED_FROM: u8 = 128;

/// What a masked generation keeps coming back to.
#[derive(Clone)]
pub(crate) struct Kept {
    /// (N, C, H, W), f32, without noise.
    pub(crate) image: Tensor,
    /// In the same shape.
    pub(crate) noise: Tensor,
    /// (1, 1, H, W), f32: 1 where it is generated anew, 0 where it is kept.
    pub(crate) mask: Tensor,
}

impl Kept {
    /// The same of other images.
    pub(crate) fn of(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { image: choose(&self.image)?, noise: choose(&self.noise)?, mask: self.mask.clone() })
    }

    /// `latents`, in the shape of the image, with what the mask keeps put back. `mixture`: of signal and noise, as the step that comes next has them; none:
    /// no step comes.
    pub(crate) fn restore(&self, latents: &Tensor, mixture: Option<(f64, f64)>) -> Result<Tensor> {
        let kept = mixture.map_or_else(|| Ok(self.image.clone()), |mixture| mixed(&self.image, &self.noise, mixture))?;
        latents.broadcast_mul(&self.mask)? + kept.broadcast_mul(&(1.0 - &self.mask)?)?
    }
}

/// An image's latents with noise on them, of one shape.
pub(crate) fn mixed(image: &Tensor, noise: &Tensor, (signal, sigma): (f64, f64)) -> Result<Tensor> {
    (image * signal)? + (noise * sigma)?
}

/// `mask`: (height, width) bytes. Returns (1, 1, height / `factor`, width / `factor`), f32: a latent is generated, 1, or kept, 0, as the first of its pixels
/// is: `interpolate` without a mode, as diffusers' inpainting has it.
pub(crate) fn latent_mask(mask: &[u8], (width, height): (usize, usize), factor: usize, device: &Device) -> Result<Tensor> {
    let rows = mask.chunks_exact(width).step_by(factor);
    let latents = rows.flat_map(|row| row.iter().step_by(factor));
    let latents: Vec<f32> = latents.map(|pixel| if *pixel >= GENERATED_FROM { 1.0 } else { 0.0 }).collect();
    Tensor::from_vec(latents, (1, 1, height / factor, width / factor), device)
}
