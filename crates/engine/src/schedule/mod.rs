//! Denoising schedules: a pure table of timesteps and coefficients, a row for each call of the UNet.
//!
//! A job's scheduler is made from the checkpoint's as diffusers' `from_config` makes one class from another's settings: what the job's name says
//! is set, everything else stays. `dpmsolver++`, `dpmsolver++-sde` and `deis` set the algorithm, whatever `algorithm_type` the checkpoint has;
//! `-karras`, `-exponential` and `-beta` set the noise levels; without one of these endings the checkpoint's `use_karras_sigmas` and the like stay.

mod beta;
pub mod config;
mod ddim;
mod ddpm;
mod deis;
mod dpm2;
mod dpm_solver;
mod euler;
pub mod flow;
mod heun;
mod lcm;
mod levels;
mod lms;
mod multistep;
mod needs;
mod planned;
mod pndm;
pub mod scheduler;
mod singlestep;
mod spacing;
pub mod step;
mod tcd;
mod training;
mod unipc;

use candle_core::Tensor;

use self::config::{PredictionType, ScheduleConfig, TimestepSpacing};
use self::scheduler::{Sampler, Scheduler};
use self::spacing::Spacing;
use self::step::{Denoised, Step};
use self::training::TrainingSchedule;

/// All steps of one generation, from noise to image.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Standard deviation of the latents the first step expects.
    pub init_noise_sigma: f64,
    /// Noise over signal before every step, and after the last; what diffusers calls `sigmas`.
    pub sigmas: Vec<f64>,
    pub steps: Vec<Step>,
    /// Whether latents are image + sigma·noise, and not of variance 1.
    under_noise: bool,
}

/// What a job asks of its schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan<'a> {
    pub scheduler: Scheduler,
    pub steps: u32,
    /// The part of the steps that is done, for latents that have an image in them already; none: all of them.
    pub strength: Option<f64>,
    /// DDIM and TCD: how much fresh noise a step adds, 0 to 1.
    pub eta: f64,
    /// Timesteps in place of those that the checkpoint's spacing gives; `steps` is their number.
    pub timesteps: Option<&'a [u32]>,
    /// Noise levels likewise, and what the last step leaves; `steps` is one less.
    pub sigmas: Option<&'a [f64]>,
}

/// What a sampler makes its table from.
#[derive(Clone, Copy)]
struct Input<'a> {
    training: &'a TrainingSchedule,
    config: &'a ScheduleConfig,
    plan: &'a Plan<'a>,
    spacing: Spacing,
    steps: usize,
    /// The row that the job starts with.
    first: usize,
}

impl Input<'_> {
    /// Whether Euler's noise levels lie evenly in their logarithm, and not at timesteps.
    fn log_linear(&self) -> bool {
        self.plan.scheduler.sampler == Sampler::Euler && self.config.interpolation_type.as_deref() == Some("log_linear")
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("must be at most {max}, which this model was distilled from with scheduler {scheduler}, got {steps}")]
    TooManySteps { max: usize, steps: usize, scheduler: &'static str },
    #[error(
        "must be at least {least} with scheduler pndm and this model, whose first steps are of Runge and Kutta, got {steps}"
    )]
    TooFewSteps { least: usize, steps: usize },
    #[error("{scheduler} does not work with this model, whose scheduler_config.json has {key} {found}; supported: {supported}")]
    Setting { scheduler: &'static str, key: &'static str, found: String, supported: &'static str },
    #[error("cannot be listed where scheduler {scheduler} has the noise levels of karras, exponential, beta or lu")]
    ListedAndSpaced { scheduler: &'static str },
    #[error("must be below {trained}, which this model was trained with, got {timestep}")]
    UntrainedTimestep { timestep: u32, trained: usize },
    #[error("leaves no step to do")]
    NoSteps,
}

impl ScheduleError {
    /// The job's field that is at fault.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::TooManySteps { .. } | Self::TooFewSteps { .. } => "steps",
            Self::Setting { .. } => "scheduler",
            Self::ListedAndSpaced { .. } | Self::UntrainedTimestep { .. } => "timesteps",
            Self::NoSteps => "strength",
        }
    }
}

impl Plan<'_> {
    #[must_use]
    pub fn new(scheduler: Scheduler, steps: u32) -> Self {
        Self { scheduler, steps, strength: None, eta: 0.0, timesteps: None, sigmas: None }
    }

    /// Rows that are left out at the beginning: `get_timesteps` of diffusers' pipelines.
    fn skipped(&self) -> usize {
        let sampler = self.scheduler.sampler;
        let calls_a_step = if matches!(sampler, Sampler::Heun | Sampler::Dpm2 | Sampler::Dpm2Ancestral) { 2 } else { 1 };
        let steps = self.steps as usize;
        // Of listed timesteps diffusers counts the calls.
        let steps = if sampler == Sampler::Heun && self.timesteps.is_some() { 2 * steps - 1 } else { steps };
        let done = self.strength.map_or(steps, |strength| ((steps as f64 * strength) as usize).min(steps));
        (steps - done) * calls_a_step
    }
}

impl Schedule {
    /// How much of the image, and how much noise, the latents hold before step `index`.
    #[must_use]
    pub fn mixture(&self, index: usize) -> (f64, f64) {
        let ratio = self.sigmas[index];
        if self.under_noise {
            return (1.0, ratio);
        }
        let signal = (ratio * ratio + 1.0).sqrt().recip();
        // Tables that end without signal have no finite ratio there: it is all noise.
        let noise = if ratio.is_infinite() { 1.0 } else { ratio * signal };
        (signal, noise)
    }

    /// The image without noise that a model predicts before step `index`, of `latents` and its `output` there; all (B, C, H, W), f32.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub fn predicted_image(
        &self,
        index: usize,
        prediction: PredictionType,
        latents: &Tensor,
        output: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let (signal, noise) = self.mixture(index);
        let image = if self.under_noise {
            Denoised::image_under(prediction, noise)
        } else {
            Denoised::image(prediction, signal, noise)
        };
        (latents * image.latents)? + (output * image.output)?
    }

    fn of_unit_variance(sigmas: Vec<f64>, steps: Vec<Step>) -> Self {
        Self { init_noise_sigma: 1.0, sigmas, steps, under_noise: false }
    }

    /// `sigmas`: of all steps, also of those that are left out.
    fn under_noise(config: &ScheduleConfig, sigmas: Vec<f64>, steps: Vec<Step>) -> Self {
        let largest = sigmas.iter().copied().fold(0.0, f64::max);
        let init_noise_sigma = match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => largest,
            TimestepSpacing::Leading => (largest * largest + 1.0).sqrt(),
        };
        Self { init_noise_sigma, sigmas, steps, under_noise: true }
    }
}
