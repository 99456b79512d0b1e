//! Where the solvers that look back over several steps take their noise levels, and the quantities they count in.

use super::config::{FinalSigma, ScheduleConfig, TimestepSpacing};
use super::training::{TrainingSchedule, karras_sigmas, linspace};

/// The timestep of every step, and noise over signal before every step and after the last.
pub(super) struct Grid {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f64>,
}

impl Grid {
    /// Sigmas of the chosen timesteps, or those of Karras et al. 2022. `lowest_lambda`: half the log signal-to-noise ratio
    /// below which no timestep is taken.
    pub(super) fn new(
        training: &TrainingSchedule,
        config: &ScheduleConfig,
        steps: usize,
        karras: bool,
        lowest_lambda: f64,
    ) -> Self {
        let (timesteps, mut sigmas): (Vec<f64>, _) = if karras {
            let sigmas = karras_sigmas(training.sigma_max(), training.sigma_min(), steps);
            (sigmas.iter().map(|sigma| training.timestep_of(*sigma)).collect(), sigmas)
        } else {
            let timesteps = timesteps(training, config, steps, lowest_lambda);
            let sigmas = timesteps.iter().map(|timestep| training.sigma_at(*timestep)).collect();
            (timesteps, sigmas)
        };
        sigmas.push(match config.final_sigmas_type {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => training.sigma_min(),
        });
        // In single precision, as diffusers keeps them.
        Self { timesteps, sigmas: sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect() }
    }

    /// Signal and noise of variance 1 together, before step `index`.
    pub(super) fn alpha_sigma(&self, index: usize) -> (f64, f64) {
        let ratio = self.sigmas[index];
        let alpha = (ratio * ratio + 1.0).sqrt().recip();
        (alpha, ratio * alpha)
    }

    /// By how much half the log signal-to-noise ratio grows in step `index`.
    pub(super) fn h(&self, index: usize) -> f64 {
        self.sigmas[index].ln() - self.sigmas[index + 1].ln()
    }
}

/// One more than `steps` are laid out, so that the last is not the image itself.
fn timesteps(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize, lowest_lambda: f64) -> Vec<f64> {
    let clipped = (0..training.len()).filter(|timestep| training.lambda_at(*timestep) < lowest_lambda).count();
    let count = training.len() - clipped;
    match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Linspace => {
            linspace(0.0, count as f64 - 1.0, steps + 1)[1..].iter().rev().map(|t| t.round_ties_even()).collect()
        }
        TimestepSpacing::Leading => {
            let stride = count / (steps + 1);
            (1..=steps).rev().map(|index| (index * stride + config.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = training.len() as f64 / steps as f64;
            (0..(count as f64 / stride).ceil() as usize)
                .map(|index| (count as f64 - index as f64 * stride).round_ties_even() - 1.0)
                .collect()
        }
    }
}
