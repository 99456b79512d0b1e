//! Previews: what a generation that is under way will look like, by a linear map from latents to colours that is fitted to its autoencoder.
//!
//! - What is shown is the image without noise that the last step predicted, not the noisy latents: that is seen from the first step on.
//! - A preview waits for the device, so there are at most two a second, and none where nobody wants one.
//! - The map is fitted when the first preview is wanted: seeded latents are decoded once, and least squares find the colours of each channel.
//!   No figures of published autoencoders stand here, so one that was trained further has a map of its own.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use candle_core::{Device, Tensor};
use image::RgbImage;

pub use super::listener::Preview;
use super::listener::PreviewListener;
use super::noise::Noise;
use super::pixels::to_rgb8;
use super::resample::{Filter, resize};
use super::{EngineError, Watch};

/// Sides of a preview, at most.
const MAX_SIDE_PX: u32 = 128;
/// Patches a side of the latents that the map is fitted on, and latents a side of a patch. Against noise patches also say what the colour
/// of an area is.
const PATCHES: usize = 16;
const PATCH: usize = 2;
const SEED: u64 = 0;
/// Keeps the factors of channels small that hardly have a colour.
const RIDGE: f64 = 1.0;
const COLOURS: usize = 3;

impl Watch {
    /// `wanted` is asked after every denoising step, and where it says so `show` is given a preview, at most two a second. Both are called on
    /// the engine's thread and must return at once.
    #[must_use]
    pub fn with_previews(
        self,
        wanted: impl Fn() -> bool + Send + Sync + 'static,
        show: impl Fn(Preview) + Send + Sync + 'static,
    ) -> Self {
        Self { previews: Some(Arc::new(PreviewListener::new(wanted, show))), ..self }
    }

    /// Whether someone wants to see this step. The last one is never shown: its image follows.
    pub(crate) fn wants_preview(&self, step: u32, steps: u32) -> bool {
        let Some(listener) = &self.previews else { return false };
        step < steps && listener.is_wanted() && listener.with_pace(|pace| pace.is_due(step))
    }
}

/// Makes the previews of one autoencoder.
#[derive(Default)]
pub(crate) struct Previewer {
    /// None within: no map could be fitted, and none is tried again.
    map: OnceLock<Option<ColourMap>>,
}

impl Previewer {
    /// Shows `latents`, (1, C, H, W), f32, as the loop has them, to whom `watch` knows of; for steps that [`Watch::wants_preview`]. `decode` gives
    /// the (1, 3, f·H, f·W) of such latents, around -1 to 1. What goes wrong is no fault of the generation's.
    pub(crate) fn show(
        &self,
        watch: &Watch,
        (step, steps): (u32, u32),
        latents: candle_core::Result<Tensor>,
        decode: impl Fn(&Tensor) -> Result<Tensor, EngineError>,
    ) {
        let Some(listener) = &watch.previews else { return };
        let shown =
            latents.map_err(EngineError::from).and_then(|latents| self.try_show(listener, (step, steps), &latents, decode));
        if let Err(error) = shown {
            tracing::debug!(%error, step, "there is no preview of this step");
        }
    }

    fn try_show(
        &self,
        listener: &PreviewListener,
        (step, steps): (u32, u32),
        latents: &Tensor,
        decode: impl Fn(&Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<(), EngineError> {
        latents.device().synchronize()?;
        if !listener.with_pace(|pace| pace.may_show(step, Instant::now())) {
            return Ok(());
        }
        let map = self.map.get_or_init(|| match ColourMap::fit(latents.dim(1).unwrap_or_default(), latents.device(), decode) {
            Ok(map) => Some(map),
            Err(error) => {
                tracing::warn!(%error, "no map from latents to colours could be fitted; there will be no previews");
                None
            }
        });
        let Some(map) = map else { return Ok(()) };
        let image = reduced(map.image(latents)?);
        let (width_px, height_px) = image.dimensions();
        listener.show(Preview { step, steps, width_px, height_px, image: image.into_raw() });
        listener.with_pace(|pace| pace.shown(step, Instant::now()));
        Ok(())
    }
}

/// A colour is `factors · latents + offset`, from -1 to 1.
struct ColourMap {
    /// (3, C), f32.
    factors: Tensor,
    /// (3, 1), f32.
    offset: Tensor,
}

impl ColourMap {
    /// The least squares of what `decode` makes of seeded latents, each colour the mean of a latent's pixels.
    fn fit(
        channels: usize,
        device: &Device,
        decode: impl Fn(&Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Self, EngineError> {
        let side = PATCHES * PATCH;
        let latents = Noise::new([SEED], (channels, PATCHES, PATCHES)).draw(&Device::Cpu)?.upsample_nearest2d(side, side)?;
        let decoded = decode(&latents.to_device(device)?)?.to_device(&Device::Cpu)?.clamp(-1.0, 1.0)?;
        let (_, colours, height, width) = decoded.dims4()?;
        let means = decoded.avg_pool2d((height / side, width / side))?.reshape((colours, side * side))?.to_vec2::<f32>()?;
        let latents = latents.reshape((channels, side * side))?.to_vec2::<f32>()?;
        let solved = least_squares(&latents, &means);
        if colours != COLOURS || solved.iter().flatten().any(|factor| !factor.is_finite()) {
            return Err(candle_core::Error::msg("the decoder's colours of seeded latents have no least squares").into());
        }
        let of = |range: std::ops::Range<usize>| -> candle_core::Result<Tensor> {
            let values = (0..COLOURS).flat_map(|colour| solved[range.clone()].iter().map(move |row| row[colour] as f32));
            Tensor::from_vec(values.collect::<Vec<_>>(), (COLOURS, range.len()), device)
        };
        Ok(Self { factors: of(0..channels)?, offset: of(channels..channels + 1)? })
    }

    /// `latents`: (1, C, H, W), f32. A pixel a latent.
    fn image(&self, latents: &Tensor) -> Result<RgbImage, EngineError> {
        let (_, channels, height, width) = latents.dims4()?;
        let colours = self.factors.matmul(&latents.reshape((channels, height * width))?)?.broadcast_add(&self.offset)?;
        let rgb = to_rgb8(&colours.reshape((COLOURS, height, width))?)?;
        let image = RgbImage::from_raw(width as u32, height as u32, rgb);
        Ok(image.ok_or_else(|| candle_core::Error::msg("a preview has another number of bytes than pixels"))?)
    }
}

/// The same image in [`MAX_SIDE_PX`] at most.
fn reduced(image: RgbImage) -> RgbImage {
    let (width_px, height_px) = image.dimensions();
    let longer = width_px.max(height_px);
    if longer <= MAX_SIDE_PX {
        return image;
    }
    let side = |px: u32| (px * MAX_SIDE_PX / longer).max(1);
    resize(&image, side(width_px), side(height_px), Filter::Lanczos)
}

/// For each of `inputs` (a row each, of as many values as the rows of `outputs`), and at last for a constant, its factor in each output: the smallest sum
/// of squares of what is left, plus [`RIDGE`] times that of the factors (Hoerl and Kennard 1970). Not finite where there is none.
fn least_squares(inputs: &[Vec<f32>], outputs: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let constant = vec![1.0; outputs.first().map_or(0, Vec::len)];
    let rows: Vec<&Vec<f32>> = inputs.iter().chain([&constant]).collect();
    let mut equations: Vec<Vec<f64>> =
        rows.iter().map(|row| rows.iter().copied().chain(outputs).map(|other| dot(row, other)).collect()).collect();
    for (place, equation) in equations.iter_mut().enumerate().take(inputs.len()) {
        equation[place] += RIDGE;
    }
    // Gauss and Jordan, without pivoting: the matrix is symmetric and positive definite.
    for place in 0..rows.len() {
        let pivot = equations[place][place];
        equations[place].iter_mut().for_each(|value| *value /= pivot);
        let own = equations[place].clone();
        for (_, other) in equations.iter_mut().enumerate().filter(|(index, _)| *index != place) {
            let factor = other[place];
            other.iter_mut().zip(&own).for_each(|(value, own)| *value -= factor * own);
        }
    }
    equations.into_iter().map(|equation| equation[rows.len()..].to_vec()).collect()
}

fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_decoder_is_found_again() {
        let inputs = [[1.0, -1.0, 0.5, 0.0], [0.0, 2.0, 1.0, -1.0]];
        let many: Vec<Vec<f32>> = inputs.iter().map(|row| row.repeat(500)).collect();
        let output: Vec<f32> = many[0].iter().zip(&many[1]).map(|(one, other)| 0.25 * one - 0.5 * other + 0.125).collect();
        let solved = least_squares(&many, &[output]);
        for (found, factor) in solved.iter().zip([0.25, -0.5, 0.125]) {
            assert!((found[0] - factor).abs() < 1e-3, "{solved:?}");
        }
    }

    #[test]
    fn a_large_preview_is_reduced_and_keeps_its_shape() {
        assert_eq!(reduced(RgbImage::new(256, 128)).dimensions(), (128, 64));
        assert_eq!(reduced(RgbImage::new(96, 128)).dimensions(), (96, 128));
    }
}
