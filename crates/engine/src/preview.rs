//! Previews: what a generation that is under way will look like, by a linear map from latents to colours that is fitted to its autoencoder.
//!
//! - What is shown is the image without noise that the last step predicted, not the noisy latents: that is seen from the first step on.
//! - A preview waits for the device, so there are at most two a second, and none where nobody wants one.
//! - The map is fitted when the first preview is wanted: seeded latents are decoded once, and least squares find the colours of each channel.
//!   No figures of published autoencoders stand here, so one that was trained further has a map of its own.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use image::RgbImage;

use super::noise::Noise;
use super::pixels::to_rgb8;
use super::resample::{Filter, resize};
use super::{EngineError, Watch};

/// Between two previews of a generation, at least.
const PAUSE: Duration = Duration::from_millis(500);
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

/// The first image of a generation after a denoising step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The denoising step that it shows, of all.
    pub step: u32,
    pub steps: u32,
    /// As many pixels as the image has latents, and 128 a side at most.
    pub width_px: u32,
    pub height_px: u32,
    /// (height, width, 3) bytes, row by row.
    pub rgb: Vec<u8>,
}

/// Who may want to see a generation.
pub(crate) struct PreviewListener {
    wanted: Box<dyn Fn() -> bool + Send + Sync>,
    show: Box<dyn Fn(Preview) + Send + Sync>,
    pace: Mutex<PreviewPace>,
}

/// When the next preview is to be. A GPU is only told its steps: how long one takes is known where the host has waited for two of them.
#[derive(Debug, Default)]
struct PreviewPace {
    /// The step that was shown last, and when.
    last: Option<(u32, Instant)>,
    per_step: Option<Duration>,
    next_step: u32,
}

impl Watch {
    /// `wanted` is asked after every denoising step, and where it says so `show` is given a preview, at most two a second. Both are called on
    /// the engine's thread and must return at once.
    #[must_use]
    pub fn with_previews(
        self,
        wanted: impl Fn() -> bool + Send + Sync + 'static,
        show: impl Fn(Preview) + Send + Sync + 'static,
    ) -> Self {
        let listener = PreviewListener { wanted: Box::new(wanted), show: Box::new(show), pace: Mutex::default() };
        Self { previews: Some(Arc::new(listener)), ..self }
    }

    /// Whether someone wants to see this step. The last one is never shown: its image follows.
    pub(crate) fn wants_preview(&self, step: u32, steps: u32) -> bool {
        let Some(listener) = &self.previews else { return false };
        step < steps && (listener.wanted)() && listener.with_pace(|pace| pace.is_due(step))
    }
}

impl PreviewListener {
    /// A panic under the lock leaves nothing half done: these are values.
    fn with_pace<T>(&self, look: impl FnOnce(&mut PreviewPace) -> T) -> T {
        look(&mut self.pace.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PreviewPace {
    fn is_due(&self, step: u32) -> bool {
        // A generation that begins anew begins with its first step.
        step >= self.next_step || self.last.is_some_and(|(last, _)| step <= last)
    }

    /// Whether enough time has passed, now that the device has done `step`; if not, the step is put off until it will have.
    fn may_show(&mut self, step: u32, now: Instant) -> bool {
        let Some((last, at)) = self.last else { return true };
        let passed = now.saturating_duration_since(at);
        self.per_step = step.checked_sub(last).filter(|steps| *steps > 0).map(|steps| passed / steps).or(self.per_step);
        self.next_step = step.saturating_add(self.steps_in(PAUSE.saturating_sub(passed)));
        passed >= PAUSE
    }

    fn shown(&mut self, step: u32, now: Instant) {
        self.last = Some((step, now));
        self.next_step = step.saturating_add(self.steps_in(PAUSE));
    }

    /// How many steps take so long, one at least.
    fn steps_in(&self, time: Duration) -> u32 {
        let steps = self.per_step.map_or(1.0, |per_step| (time.as_secs_f64() / per_step.as_secs_f64().max(1e-6)).ceil());
        (steps as u32).max(1)
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
        (listener.show)(Preview { step, steps, width_px, height_px, rgb: image.into_raw() });
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
    let product =
        |one: &[f32], other: &[f32]| -> f64 { one.iter().zip(other).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    let mut equations: Vec<Vec<f64>> =
        rows.iter().map(|row| rows.iter().copied().chain(outputs).map(|other| product(row, other)).collect()).collect();
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
    fn at_most_two_are_shown_a_second_however_long_a_step_takes() {
        let began = Instant::now();
        for step_ms in [1, 30, 170, 499, 500, 2_000] {
            let mut pace = PreviewPace::default();
            let mut shown: Vec<u64> = Vec::new();
            let mut waited = 0;
            for step in 1..=3_000 {
                if !pace.is_due(step) {
                    continue;
                }
                waited += 1;
                let at_ms = step_ms * u64::from(step);
                if pace.may_show(step, began + Duration::from_millis(at_ms)) {
                    pace.shown(step, began + Duration::from_millis(at_ms));
                    shown.push(at_ms);
                }
            }
            assert_eq!(shown[0], step_ms, "the first step is seen at once");
            assert!(
                shown.windows(2).all(|pair| (500..=500 + 2 * step_ms).contains(&(pair[1] - pair[0]))),
                "{step_ms}: {shown:?}"
            );
            assert!(waited <= shown.len() + 2, "{step_ms}: the device was waited for {waited} times for {}", shown.len());
        }
    }

    #[test]
    fn a_generation_that_begins_anew_is_seen_again() {
        let began = Instant::now();
        let mut pace = PreviewPace::default();
        pace.shown(40, began);
        assert!(pace.is_due(1) && pace.may_show(1, began + PAUSE));
        pace.shown(1, began + PAUSE);
        assert!(pace.is_due(2) && !pace.may_show(2, began + PAUSE));
    }

    #[test]
    fn a_large_preview_is_reduced_and_keeps_its_shape() {
        assert_eq!(reduced(RgbImage::new(256, 128)).dimensions(), (128, 64));
        assert_eq!(reduced(RgbImage::new(96, 128)).dimensions(), (96, 128));
    }
}
