//! Classifier-free guidance: from two predictions to the one that a step takes.

use candle_core::{D, Result, Tensor};

/// How far a prediction is led away from the negative prompt's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    pub scale: f64,
    /// How much of the spread that this adds is taken back, 0 to 1.
    pub rescale: f64,
    /// How far it is led towards the image that is edited: instruct-pix2pix.
    pub image_scale: f64,
}

impl From<f64> for Guidance {
    fn from(scale: f64) -> Self {
        Self { scale, rescale: 0.0, image_scale: 1.0 }
    }
}

impl Guidance {
    /// `negative + scale·(positive − negative)` (Ho and Salimans 2022), its standard deviation led back to that of `positive`: equation (16) of
    /// Lin et al. 2023, arXiv 2305.08891. Both: (B, C, H, W), f32.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub(super) fn apply(self, negative: &Tensor, positive: &Tensor) -> Result<Tensor> {
        let guided = (negative + ((positive - negative)? * self.scale)?)?;
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        let ratio = (deviation(positive)? / deviation(&guided)?)?;
        let rescaled = guided.broadcast_mul(&ratio)?;
        (rescaled * self.rescale)? + (guided * (1.0 - self.rescale))?
    }

    /// `nothing + scale·(positive − negative) + image_scale·(negative − nothing)`: equation (3) of Brooks et al. 2023, arXiv 2211.09800, where
    /// `nothing` saw the negative prompt and no image. All: (B, C, H, W), f32.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub(super) fn apply_to_edit(self, nothing: &Tensor, negative: &Tensor, positive: &Tensor) -> Result<Tensor> {
        (nothing + ((positive - negative)? * self.scale)?)? + ((negative - nothing)? * self.image_scale)?
    }
}

/// The standard deviation of each image's values, as of a sample: (B, 1, 1, 1).
fn deviation(images: &Tensor) -> Result<Tensor> {
    images.flatten_from(1)?.var_keepdim(D::Minus1)?.sqrt()?.unsqueeze(2)?.unsqueeze(3)
}
