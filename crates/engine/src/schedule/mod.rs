//! Denoising schedules: a pure table of timesteps and coefficients, and one step that applies a row of it.

pub mod config;
mod ddim;
mod dpm_solver;
mod euler;
mod lcm;
mod multistep;
pub mod scheduler;
mod training;
mod unipc;

use candle_core::{Result, Tensor};

use self::config::{PredictionType, ScheduleConfig};
use self::dpm_solver::Equation;
use self::scheduler::Scheduler;
use self::training::{DefaultBetas, TrainingSchedule};

/// All steps of one generation, from noise to image.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Standard deviation of the latents the first step expects.
    pub init_noise_sigma: f64,
    /// Noise over signal before every step, and after the last; what diffusers calls `sigmas`.
    pub sigmas: Vec<f64>,
    pub steps: Vec<Step>,
}

/// One denoising step. Every sampler here is the same three linear combinations with other coefficients:
///
/// - `denoised = a·latents + b·output`, the image as this step sees it, clamped where a sampler wants it;
/// - `corrected`: the latents, or what a corrector makes of the step before now that the image at its end is known;
/// - `next = c·corrected + d·output + e·denoised + f·previous denoised + g·noise`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// What the UNet is told: 0 to 999, also between whole values.
    pub timestep: f64,
    /// The UNet sees the latents times this.
    pub input_scale: f64,
    pub denoised: Denoised,
    pub corrected: Option<Corrected>,
    pub next: Next,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoised {
    pub latents: f64,
    pub output: f64,
    /// Largest magnitude.
    pub clamp: Option<f64>,
}

/// Factors of what the last two steps left behind, and of the image that this one sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corrected {
    pub previous_latents: f64,
    pub denoised: f64,
    pub previous_denoised: f64,
    /// Of the step before the previous one.
    pub earlier_denoised: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Next {
    /// Of the corrected latents.
    pub latents: f64,
    pub output: f64,
    pub denoised: f64,
    pub previous_denoised: f64,
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
    /// The latents that the last step went out from, corrected.
    latents: Option<Tensor>,
    denoised: Option<Tensor>,
    earlier_denoised: Option<Tensor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("must be at most {most}, which this model was distilled from with scheduler lcm, got {steps}")]
    TooManySteps { most: usize, steps: usize },
}

impl History {
    /// The same of other images: `choose` is applied to every tensor.
    ///
    /// # Errors
    /// The first of `choose`'s.
    pub fn of(&self, choose: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let chosen = |tensor: &Option<Tensor>| tensor.as_ref().map(&choose).transpose();
        Ok(Self {
            latents: chosen(&self.latents)?,
            denoised: chosen(&self.denoised)?,
            earlier_denoised: chosen(&self.earlier_denoised)?,
        })
    }
}

impl Schedule {
    /// The table of `scheduler` with `steps` steps over the noise a model was trained on.
    ///
    /// # Errors
    /// When the model has no room for so many.
    pub fn new(scheduler: Scheduler, steps: u32, config: &ScheduleConfig) -> std::result::Result<Self, ScheduleError> {
        Self::without_first(0, scheduler, steps, config)
    }

    /// The same without the first `skipped` of its steps, for latents that have an image in them already.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_first(
        skipped: u32,
        scheduler: Scheduler,
        steps: u32,
        config: &ScheduleConfig,
    ) -> std::result::Result<Self, ScheduleError> {
        let (skipped, steps) = (skipped as usize, steps as usize);
        let defaults = if scheduler == Scheduler::Lcm { DefaultBetas::LATENT_DIFFUSION } else { DefaultBetas::DDPM };
        let training = TrainingSchedule::new(config, defaults);
        let karras = scheduler.karras() || config.use_karras_sigmas.unwrap_or(false);
        let mut schedule = match scheduler {
            Scheduler::DpmSolverPlusPlus | Scheduler::DpmSolverPlusPlusKarras => {
                dpm_solver::schedule(&training, config, steps, skipped, karras, Equation::Ordinary)
            }
            Scheduler::DpmSolverPlusPlusSde | Scheduler::DpmSolverPlusPlusSdeKarras => {
                dpm_solver::schedule(&training, config, steps, skipped, karras, Equation::Stochastic)
            }
            Scheduler::UniPc | Scheduler::UniPcKarras => unipc::schedule(&training, config, steps, skipped, karras),
            Scheduler::Ddim => ddim::schedule(&training, config, steps),
            Scheduler::Euler | Scheduler::EulerKarras => euler::schedule(&training, config, steps, karras),
            Scheduler::EulerAncestral => euler::ancestral_schedule(&training, config, steps),
            Scheduler::Lcm => lcm::schedule(&training, config, steps)?,
        };
        schedule.steps.drain(..skipped.min(schedule.steps.len()));
        schedule.sigmas.drain(..skipped.min(schedule.sigmas.len()));
        Ok(schedule)
    }

    /// How much of the image, and how much noise, the latents hold before step `index`.
    #[must_use]
    pub fn mixture(&self, index: usize) -> (f64, f64) {
        let (ratio, scale) = (self.sigmas[index], self.steps[index].input_scale);
        let signal = (ratio * ratio + 1.0).sqrt().recip() / scale;
        (signal, ratio * signal)
    }
}

impl Step {
    /// Applies this row. All tensors: (B, C, H, W), f32; `output` is what the UNet predicted, guided already.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub fn advance(&self, latents: &Tensor, output: &Tensor, history: &History, noise: Option<&Tensor>) -> Result<Stepped> {
        let denoised = combine(&[(self.denoised.latents, Some(latents)), (self.denoised.output, Some(output))])?;
        let denoised = match self.denoised.clamp {
            Some(largest) => denoised.clamp(-largest, largest)?,
            None => denoised,
        };
        let previous_denoised = history.denoised.as_ref();
        let corrected = match self.corrected {
            None => latents.clone(),
            Some(corrected) => combine(&[
                (corrected.previous_latents, history.latents.as_ref()),
                (corrected.denoised, Some(&denoised)),
                (corrected.previous_denoised, previous_denoised),
                (corrected.earlier_denoised, history.earlier_denoised.as_ref()),
            ])?,
        };
        let latents = combine(&[
            (self.next.latents, Some(&corrected)),
            (self.next.output, Some(output)),
            (self.next.denoised, Some(&denoised)),
            (self.next.previous_denoised, previous_denoised),
            (self.next.noise, noise),
        ])?;
        let history =
            History { latents: Some(corrected), earlier_denoised: previous_denoised.cloned(), denoised: Some(denoised) };
        Ok(Stepped { latents, history })
    }
}

/// The sum of factor times tensor over all factors that are not zero.
fn combine(terms: &[(f64, Option<&Tensor>)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (factor, tensor) in terms.iter().filter(|(factor, _)| *factor != 0.0) {
        let tensor = tensor.ok_or_else(|| candle_core::Error::msg("a step's tensor is missing"))?;
        let term = (tensor * *factor)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    sum.ok_or_else(|| candle_core::Error::msg("a step without a term"))
}

/// The denoised image where `latents = alpha·image + sigma·noise`.
fn denoised(prediction: PredictionType, alpha: f64, sigma: f64) -> Denoised {
    match prediction {
        PredictionType::Epsilon => Denoised { latents: alpha.recip(), output: -sigma / alpha, clamp: None },
        PredictionType::VPrediction => Denoised { latents: alpha, output: -sigma, clamp: None },
    }
}
