//! Which timesteps and noise levels the steps of a sampler have.

use super::Input;
use super::beta;
use super::config::{FinalSigma, ScheduleConfig, TimestepSpacing};
use super::scheduler::{Sampler, SigmaSpacing};
use super::spacing::Spacing;
use super::training::{TrainingSchedule, linspace};

/// With fewer steps `lower_order_final` makes the last ones of lower order.
pub(super) const FEW_STEPS: usize = 15;

/// Exponent of Karras et al. 2022, arXiv 2206.00364.
const KARRAS_RHO: f64 = 7.0;

/// The timestep of every step, and noise over signal before every step and after the last.
pub(super) struct Grid {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f64>,
}

impl Grid {
    /// Of the solvers that look back over several steps: `trained` are the timesteps where they are not spaced otherwise.
    pub(super) fn of_solver(input: &Input<'_>, trained: impl FnOnce() -> Vec<f64>) -> Self {
        let Input { training, config, spacing, steps, .. } = *input;
        let (timesteps, sigmas) = match (input.plan.timesteps, spacing) {
            (Some(timesteps), _) => at(training, timesteps.iter().copied().map(f64::from).collect()),
            (None, Spacing::Trained) => at(training, trained()),
            (None, _) => {
                let sigmas = spaced(spacing, bounds(config, training.sigma_max(), training.sigma_min()), steps);
                let timesteps = sigmas.iter().map(|sigma| {
                    let timestep = training.timestep_of(*sigma);
                    if rounds(input) { timestep.round_ties_even() } else { timestep.trunc() }
                });
                (timesteps.collect(), sigmas)
            }
        };
        Self { timesteps, sigmas: single_precision(sigmas) }
    }

    /// Of k-diffusion's samplers: the noise levels of the timesteps, or others between the first and the last of these.
    pub(super) fn of_k_diffusion(input: &Input<'_>) -> Self {
        let Input { training, config, spacing, steps, .. } = *input;
        let chosen = input.plan.timesteps.map(|timesteps| timesteps.iter().copied().map(f64::from).collect());
        let (timesteps, sigmas) = at(training, chosen.unwrap_or_else(|| fractional_timesteps(training, config, steps)));
        let (Spacing::Spaced(_) | Spacing::Lu) = spacing else {
            return Self { timesteps, sigmas: single_precision(sigmas) };
        };
        let (largest, smallest) = if input.log_linear() {
            (training.sigma_max(), training.sigma_min())
        } else {
            (sigmas[0], sigmas[sigmas.len() - 1])
        };
        Self::at_sigmas(training, spaced(spacing, bounds(config, largest, smallest), steps))
    }

    /// At given noise levels.
    pub(super) fn at_sigmas(training: &TrainingSchedule, sigmas: Vec<f64>) -> Self {
        let timesteps = sigmas.iter().map(|sigma| training.timestep_of(*sigma)).collect();
        Self { timesteps, sigmas: single_precision(sigmas) }
    }

    /// With the noise that the last step leaves.
    pub(super) fn ending_at(mut self, sigma: f64) -> Self {
        self.sigmas.push(f64::from(sigma as f32));
        self
    }

    /// Noise after the last step as the checkpoint asks for it.
    pub(super) fn final_sigma(training: &TrainingSchedule, config: &ScheduleConfig) -> f64 {
        match config.final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => training.sigma_min(),
        }
    }

    /// Signal and noise of variance 1 together, before step `index`.
    pub(super) fn alpha_sigma(&self, index: usize) -> (f64, f64) {
        let ratio = self.sigmas[index];
        let alpha = (ratio * ratio + 1.0).sqrt().recip();
        (alpha, ratio * alpha)
    }

    /// By how much half the log signal-to-noise ratio grows from before step `from` to before step `to`.
    pub(super) fn growth(&self, from: usize, to: usize) -> f64 {
        self.sigmas[from].ln() - self.sigmas[to].ln()
    }
}

/// In single precision, as diffusers keeps them.
fn single_precision(sigmas: Vec<f64>) -> Vec<f64> {
    sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect()
}

fn at(training: &TrainingSchedule, timesteps: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
    let sigmas = timesteps.iter().map(|timestep| training.sigma_at(*timestep)).collect();
    (timesteps, sigmas)
}

/// Whether diffusers rounds the timesteps of such noise levels, and does not cut them off.
fn rounds(input: &Input<'_>) -> bool {
    use super::config::BetaSchedule::SquaredcosCapV2;
    let multistep = matches!(input.plan.scheduler.sampler, Sampler::DpmSolverPlusPlus | Sampler::DpmSolverPlusPlusSde);
    let even = matches!(input.spacing, Spacing::Spaced(SigmaSpacing::Karras) | Spacing::Lu);
    even && !(multistep && input.config.beta_schedule == Some(SquaredcosCapV2))
}

/// The largest and the smallest noise level, where the checkpoint has no others.
fn bounds(config: &ScheduleConfig, largest: f64, smallest: f64) -> (f64, f64) {
    (config.sigma_max.unwrap_or(largest), config.sigma_min.unwrap_or(smallest))
}

/// `steps` noise levels from the largest to the smallest.
fn spaced(spacing: Spacing, (largest, smallest): (f64, f64), steps: usize) -> Vec<f64> {
    match spacing {
        Spacing::Spaced(SigmaSpacing::Karras) => {
            let from = largest.powf(KARRAS_RHO.recip());
            let to = smallest.powf(KARRAS_RHO.recip());
            linspace(0.0, 1.0, steps).into_iter().map(|ramp| (from + ramp * (to - from)).powf(KARRAS_RHO)).collect()
        }
        Spacing::Spaced(SigmaSpacing::Beta) => {
            let ramp = linspace(0.0, 1.0, steps).into_iter();
            ramp.map(|ramp| smallest + beta::quantile(1.0 - ramp) * (largest - smallest)).collect()
        }
        Spacing::Spaced(SigmaSpacing::Exponential) | Spacing::Lu | Spacing::Trained => {
            linspace(largest.ln(), smallest.ln(), steps).into_iter().map(f64::exp).collect()
        }
    }
}

/// Timesteps of a solver that looks back: one more than `steps` are laid out, so that the last is not the image itself.
/// `lowest_lambda`: half the log signal-to-noise ratio below which none is taken.
pub(super) fn solver_timesteps(
    training: &TrainingSchedule,
    config: &ScheduleConfig,
    steps: usize,
    spacing: TimestepSpacing,
    lowest_lambda: f64,
) -> Vec<f64> {
    let clipped = (0..training.len()).filter(|timestep| training.lambda_at(*timestep) < lowest_lambda).count();
    let count = training.len() - clipped;
    match spacing {
        TimestepSpacing::Linspace => {
            linspace(0.0, count as f64 - 1.0, steps + 1)[1..].iter().rev().map(|t| t.round_ties_even()).collect()
        }
        TimestepSpacing::Leading => {
            let stride = count / (steps + 1);
            (1..=steps).rev().map(|index| (index * stride + config.steps_offset()) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(count, training.len() as f64 / steps as f64),
    }
}

/// Timesteps of k-diffusion's samplers, where `linspace` has them between whole values.
fn fractional_timesteps(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> Vec<f64> {
    match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Linspace => {
            linspace(0.0, training.len() as f64 - 1.0, steps).into_iter().rev().map(|t| f64::from(t as f32)).collect()
        }
        spacing => whole_timesteps(training, config, steps, spacing).into_iter().map(|timestep| timestep as f64).collect(),
    }
}

/// Timesteps of the samplers that know no others than the trained ones.
pub(super) fn whole_timesteps(
    training: &TrainingSchedule,
    config: &ScheduleConfig,
    steps: usize,
    spacing: TimestepSpacing,
) -> Vec<i64> {
    let count = training.len();
    match spacing {
        TimestepSpacing::Linspace => {
            linspace(0.0, count as f64 - 1.0, steps).into_iter().rev().map(|t| t.round_ties_even() as i64).collect()
        }
        TimestepSpacing::Leading => {
            let stride = count / steps;
            (0..steps).rev().map(|index| (index * stride + config.steps_offset()) as i64).collect()
        }
        TimestepSpacing::Trailing => {
            trailing(count, count as f64 / steps as f64).into_iter().map(|timestep| timestep as i64).collect()
        }
    }
}

fn trailing(count: usize, stride: f64) -> Vec<f64> {
    let steps = (count as f64 / stride).ceil() as usize;
    (0..steps).map(|index| (count as f64 - index as f64 * stride).round_ties_even() - 1.0).collect()
}
