//! Classifier-free guidance: from two predictions to the one that a step takes.

use candle_core::{D, Device, Result, Tensor};

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
    /// (4,), f32: the scale, the rescaling and what is left of 1, the image's scale. On the device, so that a step is the same for all of them.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn factors(self, device: &Device) -> Result<Tensor> {
        let factors = [self.scale, self.rescale, 1.0 - self.rescale, self.image_scale].map(|factor| factor as f32);
        Tensor::from_slice(&factors, factors.len(), device)
    }

    /// Whether spread is taken back.
    pub(super) fn rescales(self) -> bool {
        self.rescale != 0.0
    }
}

/// `negative + scale·(positive − negative)` (Ho and Salimans 2022), with `rescales` its standard deviation led back to that of `positive`: equation
/// (16) of Lin et al. 2023, arXiv 2305.08891. Both: (B, C, H, W), f32; `factors`: [`Guidance::factors`].
///
/// # Errors
/// When the shapes differ, or there is no memory.
pub(super) fn guided(negative: &Tensor, positive: &Tensor, factors: &Tensor, rescales: bool) -> Result<Tensor> {
    let guided = (negative + (positive - negative)?.broadcast_mul(&factors.get(0)?)?)?;
    if !rescales {
        return Ok(guided);
    }
    let ratio = (deviation(positive)? / deviation(&guided)?)?;
    let rescaled = guided.broadcast_mul(&ratio)?;
    rescaled.broadcast_mul(&factors.get(1)?)? + guided.broadcast_mul(&factors.get(2)?)?
}

/// `nothing + scale·(positive − negative) + image_scale·(negative − nothing)`: equation (3) of Brooks et al. 2023, arXiv 2211.09800, where
/// `nothing` saw the negative prompt and no image. All: (B, C, H, W), f32; `factors`: [`Guidance::factors`].
///
/// # Errors
/// When the shapes differ, or there is no memory.
pub(super) fn guided_edit(nothing: &Tensor, negative: &Tensor, positive: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let text = (positive - negative)?.broadcast_mul(&factors.get(0)?)?;
    let image = (negative - nothing)?.broadcast_mul(&factors.get(3)?)?;
    (nothing + text)? + image
}

/// The standard deviation of each image's values, as of a sample: (B, 1, 1, 1).
fn deviation(images: &Tensor) -> Result<Tensor> {
    images.flatten_from(1)?.var_keepdim(D::Minus1)?.sqrt()?.unsqueeze(2)?.unsqueeze(3)
}
