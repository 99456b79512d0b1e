//! Denoising schedules: a pure table of timesteps and coefficients, and one step that applies a row of it.

pub mod config;
mod ddim;
mod dpm_solver;
mod euler;
mod training;

use candle_core::{Result, Tensor};

use self::config::{PredictionType, ScheduleConfig};
use self::training::TrainingSchedule;
use crate::job::task::Scheduler;

/// All steps of one painting, from noise to picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Standard deviation of the latents the first step expects.
    pub init_noise_sigma: f64,
    /// Noise over signal before every step, and after the last; what diffusers calls `sigmas`.
    pub sigmas: Vec<f64>,
    pub steps: Vec<Step>,
}

/// One denoising step. Every sampler here is the same two linear combinations with other coefficients:
///
/// - `denoised = a·latents + b·output`, the picture as this step sees it, clamped where a sampler wants it;
/// - `next = c·latents + d·output + e·denoised + f·previous denoised + g·noise`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// What the UNet is told: 0 to 999, also between whole numbers.
    pub timestep: f64,
    /// The UNet sees the latents times this.
    pub input_scale: f64,
    pub denoised: Denoised,
    pub next: Next,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoised {
    pub latents: f64,
    pub output: f64,
    /// Largest magnitude.
    pub clamp: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Next {
    pub latents: f64,
    pub output: f64,
    pub denoised: f64,
    pub previous_denoised: f64,
    pub noise: f64,
}

/// What a step leaves behind.
pub struct Stepped {
    pub latents: Tensor,
    /// The next step's `previous_denoised`.
    pub denoised: Tensor,
}

impl Schedule {
    /// The table of `scheduler` with `steps` steps over the noise a model was trained on.
    #[must_use]
    pub fn new(scheduler: Scheduler, steps: u32, config: &ScheduleConfig) -> Self {
        let training = TrainingSchedule::new(config);
        let steps = steps as usize;
        match scheduler {
            Scheduler::DpmSolverPlusPlus => {
                dpm_solver::schedule(&training, config, steps, config.use_karras_sigmas.unwrap_or(false))
            }
            Scheduler::DpmSolverPlusPlusKarras => dpm_solver::schedule(&training, config, steps, true),
            Scheduler::Ddim => ddim::schedule(&training, config, steps),
            Scheduler::Euler => euler::schedule(&training, config, steps),
            Scheduler::EulerAncestral => euler::ancestral_schedule(&training, config, steps),
        }
    }
}

impl Step {
    /// Applies this row. All tensors: (B, C, H, W), f32; `output` is what the UNet predicted, guided already.
    ///
    /// # Errors
    /// When the shapes differ, or there is no memory.
    pub fn advance(
        &self,
        latents: &Tensor,
        output: &Tensor,
        previous_denoised: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Result<Stepped> {
        let denoised = combine(&[(self.denoised.latents, Some(latents)), (self.denoised.output, Some(output))])?;
        let denoised = match self.denoised.clamp {
            Some(largest) => denoised.clamp(-largest, largest)?,
            None => denoised,
        };
        let latents = combine(&[
            (self.next.latents, Some(latents)),
            (self.next.output, Some(output)),
            (self.next.denoised, Some(&denoised)),
            (self.next.previous_denoised, previous_denoised),
            (self.next.noise, noise),
        ])?;
        Ok(Stepped { latents, denoised })
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

/// The denoised picture where `latents = alpha·picture + sigma·noise`.
fn denoised(prediction: PredictionType, alpha: f64, sigma: f64) -> Denoised {
    match prediction {
        PredictionType::Epsilon => Denoised { latents: alpha.recip(), output: -sigma / alpha, clamp: None },
        PredictionType::VPrediction => Denoised { latents: alpha, output: -sigma, clamp: None },
    }
}
