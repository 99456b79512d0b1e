//! One denoising step: coefficients, and the arithmetic that applies them.

use candle_core::{Result, Tensor};

use super::config::{Limit, PredictionType};

/// One call of the UNet and what becomes of it. Every sampler is the same three linear combinations with other coefficients:
///
/// - `denoised = a·latents + b·output`: what this step predicts, limited where a sampler wants it. It is the image without noise,
///   or for some samplers the noise, the output itself or the slope (each file says which);
/// - `corrected`: the latents, or what a corrector makes of the step before now that the prediction at its end is known;
/// - `next = c·corrected + d·output + e·denoised + Σ f·predictions before + g·kept latents + h·noise`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The timestep that the UNet gets: 0 to 999, also between whole values.
    pub timestep: f64,
    /// The UNet sees the latents times this.
    pub input_scale: f64,
    pub denoised: Denoised,
    pub corrected: Option<Corrected>,
    pub next: Next,
    /// Whether later steps go out from the corrected latents of this one.
    pub keeps_latents: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoised {
    pub latents: f64,
    pub output: f64,
    pub limit: Option<Limit>,
    /// Where a limited image is not what this step predicts: factors of the latents and of that image.
    pub of_limited: Option<(f64, f64)>,
}

impl Limit {
    /// `images`: (B, C, H, W), f32.
    fn apply(self, images: &Tensor) -> Result<Tensor> {
        match self {
            Self::Clamp(largest) => images.clamp(-largest, largest),
            Self::Dynamic { quantile, largest } => {
                let magnitudes = images.abs()?.flatten_from(1)?.to_vec2::<f32>()?.into_iter();
                let bounds = magnitudes.map(|row| quantile_of(row, quantile).max(1.0).min(largest as f32));
                let bounds = Tensor::from_vec(bounds.collect::<Vec<_>>(), (images.dim(0)?, 1, 1, 1), images.device())?;
                images.broadcast_minimum(&bounds)?.broadcast_maximum(&bounds.neg()?)?.broadcast_div(&bounds)
            }
        }
    }
}

/// Linear between the two nearest values, as `torch.quantile`. `values`: not empty.
fn quantile_of(mut values: Vec<f32>, quantile: f64) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    let place = quantile.clamp(0.0, 1.0) * (values.len() - 1) as f64;
    let below = f64::from(values[place.floor() as usize]);
    let above = f64::from(values[place.ceil() as usize]);
    (below + place.fract() * (above - below)) as f32
}

/// Factors of the latents that were kept last, and of the predictions of this step and of those before.
#[derive(Debug, Clone, PartialEq)]
pub struct Corrected {
    pub kept_latents: f64,
    pub denoised: f64,
    /// The last step's first.
    pub before: Vec<f64>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Next {
    /// Of the corrected latents.
    pub latents: f64,
    pub output: f64,
    pub denoised: f64,
    /// Of the predictions of the steps before, the last step's first.
    pub before: Vec<f64>,
    /// Of the latents that an earlier step kept.
    pub kept_latents: f64,
    /// Where it is 0 no noise is drawn.
    pub noise: f64,
}

/// What a step leaves behind.
pub struct Stepped {
    pub latents: Tensor,
    pub history: History,
}

/// What the next step may look back at; nothing before the first. All tensors: (B, C, H, W), f32.
#[derive(Debug, Clone, Default)]
pub struct History {
    kept_latents: Option<Tensor>,
    /// Predictions, the last step's first.
    denoised: Vec<Tensor>,
}

impl History {
    /// The furthest that a sampler looks back: PNDM, over three Runge-Kutta steps of four calls each.
    const MAX: usize = 12;

    /// The same of other images: `choose` is applied to every tensor.
    ///
    /// # Errors
    /// The first of `choose`'s.
    pub fn of(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            kept_latents: self.kept_latents.as_ref().map(&choose).transpose()?,
            denoised: self.denoised.iter().map(choose).collect::<Result<_>>()?,
        })
    }

    fn terms<'a>(&'a self, factors: &'a [f64]) -> impl Iterator<Item = (f64, Option<&'a Tensor>)> {
        factors.iter().enumerate().map(|(back, factor)| (*factor, self.denoised.get(back)))
    }

    /// After a step whose prediction is `denoised`.
    fn after(&self, denoised: Tensor, kept: Option<Tensor>) -> Self {
        let earlier = self.denoised.iter().take(Self::MAX - 1).cloned();
        Self {
            kept_latents: kept.or_else(|| self.kept_latents.clone()),
            denoised: std::iter::once(denoised).chain(earlier).collect(),
        }
    }
}

impl Step {
    /// Applies this row. All tensors: (B, C, H, W), f32; `output` is what the UNet predicted, guided already.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub fn advance(&self, latents: &Tensor, output: &Tensor, history: &History, noise: Option<&Tensor>) -> Result<Stepped> {
        let denoised = combine([(self.denoised.latents, Some(latents)), (self.denoised.output, Some(output))])?;
        let denoised = match self.denoised.limit {
            Some(limit) => limit.apply(&denoised)?,
            None => denoised,
        };
        let denoised = match self.denoised.of_limited {
            Some((of_latents, of_image)) => combine([(of_latents, Some(latents)), (of_image, Some(&denoised))])?,
            None => denoised,
        };
        let kept = history.kept_latents.as_ref();
        let corrected = match &self.corrected {
            None => latents.clone(),
            Some(corrected) => {
                let own = [(corrected.kept_latents, kept), (corrected.denoised, Some(&denoised))];
                combine(own.into_iter().chain(history.terms(&corrected.before)))?
            }
        };
        let own = [
            (self.next.latents, Some(&corrected)),
            (self.next.output, Some(output)),
            (self.next.denoised, Some(&denoised)),
            (self.next.kept_latents, kept),
            (self.next.noise, noise),
        ];
        let latents = combine(own.into_iter().chain(history.terms(&self.next.before)))?;
        let history = history.after(denoised, self.keeps_latents.then_some(corrected));
        Ok(Stepped { latents, history })
    }
}

/// The sum of factor times tensor over all factors that are not zero.
fn combine<'a>(terms: impl IntoIterator<Item = (f64, Option<&'a Tensor>)>) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (factor, tensor) in terms.into_iter().filter(|(factor, _)| *factor != 0.0) {
        let tensor = tensor.ok_or_else(|| candle_core::Error::msg("a step's tensor is missing"))?;
        let term = (tensor * factor)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    sum.ok_or_else(|| candle_core::Error::msg("a step without a term"))
}

impl Denoised {
    pub(super) const fn linear(latents: f64, output: f64) -> Self {
        Self { latents, output, limit: None, of_limited: None }
    }

    /// The image without noise, where `latents = alpha·image + sigma·noise`.
    pub(super) fn image(prediction: PredictionType, alpha: f64, sigma: f64) -> Self {
        match prediction {
            PredictionType::Epsilon => Self::linear(alpha.recip(), -sigma / alpha),
            PredictionType::VPrediction => Self::linear(alpha, -sigma),
            PredictionType::Sample => Self::linear(0.0, 1.0),
        }
    }

    /// The image without noise, where `latents = image + sigma·noise`.
    pub(super) fn image_under(prediction: PredictionType, sigma: f64) -> Self {
        let scale = (sigma * sigma + 1.0).sqrt().recip();
        match prediction {
            PredictionType::Epsilon => Self::linear(1.0, -sigma),
            PredictionType::VPrediction => Self::linear(scale * scale, -sigma * scale),
            PredictionType::Sample => Self::linear(0.0, 1.0),
        }
    }

    /// The noise, where `latents = image + sigma·noise`: the slope of what a sampler follows. Not by way of the image, where it can be: at large noise
    /// levels that would be the small difference of large numbers.
    pub(super) fn slope(prediction: PredictionType, sigma: f64, limit: Option<Limit>) -> Self {
        let scale = (sigma * sigma + 1.0).sqrt().recip();
        match (prediction, limit) {
            (_, Some(_)) => {
                let of_limited = Some((sigma.recip(), -sigma.recip()));
                Self { limit, of_limited, ..Self::image_under(prediction, sigma) }
            }
            (PredictionType::Epsilon, None) => Self::linear(0.0, 1.0),
            (PredictionType::VPrediction, None) => Self::linear(sigma * scale * scale, scale),
            (PredictionType::Sample, None) => Self::linear(sigma.recip(), -sigma.recip()),
        }
    }

    /// The noise, where `latents = alpha·image + sigma·noise`.
    pub(super) fn noise(prediction: PredictionType, alpha: f64, sigma: f64) -> Self {
        match prediction {
            PredictionType::Epsilon => Self::linear(0.0, 1.0),
            PredictionType::VPrediction => Self::linear(sigma, alpha),
            PredictionType::Sample => Self::linear(sigma.recip(), -alpha / sigma),
        }
    }

    /// The noise beside an image on which there is a limit.
    pub(super) fn noise_with_limit(limit: Limit, prediction: PredictionType, alpha: f64, sigma: f64) -> Self {
        let of_limited = Some((sigma.recip(), -alpha / sigma));
        Self { limit: Some(limit), of_limited, ..Self::image(prediction, alpha, sigma) }
    }
}
