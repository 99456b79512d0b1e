//! Euler and Euler ancestral (Karras et al. 2022, arXiv 2206.00364; k-diffusion), as diffusers' `EulerDiscreteScheduler`
//! and `EulerAncestralDiscreteScheduler` count them.

use super::config::{FinalSigma, PredictionType, ScheduleConfig, TimestepSpacing};
use super::training::{TrainingSchedule, karras_sigmas, linspace};
use super::{Denoised, Next, Schedule, Step};

pub(super) fn schedule(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize, karras: bool) -> Schedule {
    let (mut timesteps, mut sigmas) = timesteps(training, config, steps);
    if karras {
        sigmas = karras_sigmas(sigmas[0], sigmas[sigmas.len() - 1], steps);
        timesteps = sigmas.iter().map(|sigma| training.timestep_of(*sigma)).collect();
    }
    let last = match config.final_sigmas_type {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => training.sigma_min(),
    };
    table(config, &timesteps, with_last(sigmas, last), euler)
}

pub(super) fn ancestral_schedule(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> Schedule {
    let (timesteps, sigmas) = timesteps(training, config, steps);
    table(config, &timesteps, with_last(sigmas, 0.0), ancestral)
}

/// The straight line from the latents through the denoised image, followed until `sigma_next`.
fn euler(sigma: f64, sigma_next: f64) -> Next {
    Next { latents: sigma_next / sigma, denoised: 1.0 - sigma_next / sigma, ..Next::default() }
}

/// Goes further down than `sigma_next`, and back up by fresh noise.
fn ancestral(sigma: f64, sigma_next: f64) -> Next {
    let noise = (sigma_next.powi(2) * (sigma.powi(2) - sigma_next.powi(2)) / sigma.powi(2)).sqrt();
    Next { noise, ..euler(sigma, (sigma_next.powi(2) - noise.powi(2)).max(0.0).sqrt()) }
}

fn table(config: &ScheduleConfig, timesteps: &[f64], sigmas: Vec<f64>, next: fn(f64, f64) -> Next) -> Schedule {
    let row = |(index, timestep): (usize, &f64)| {
        let sigma = sigmas[index];
        // Latents here are image + sigma·noise; the UNet wants variance 1.
        let input_scale = (sigma * sigma + 1.0).sqrt().recip();
        let (latents, output) = match config.prediction_type {
            PredictionType::Epsilon => (1.0, -sigma),
            PredictionType::VPrediction => (input_scale * input_scale, -sigma * input_scale),
        };
        let denoised = Denoised { latents, output, clamp: None };
        Step { timestep: *timestep, input_scale, denoised, corrected: None, next: next(sigma, sigmas[index + 1]) }
    };
    let steps = timesteps.iter().enumerate().map(row).collect();
    let init_noise_sigma = match spacing(config) {
        TimestepSpacing::Linspace | TimestepSpacing::Trailing => sigmas[0],
        TimestepSpacing::Leading => (sigmas[0] * sigmas[0] + 1.0).sqrt(),
    };
    Schedule { init_noise_sigma, sigmas, steps }
}

fn timesteps(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> (Vec<f64>, Vec<f64>) {
    let count = training.len();
    let timesteps: Vec<f64> = match spacing(config) {
        TimestepSpacing::Linspace => {
            linspace(0.0, count as f64 - 1.0, steps).into_iter().rev().map(|t| f64::from(t as f32)).collect()
        }
        TimestepSpacing::Leading => {
            let stride = count / steps;
            (0..steps).rev().map(|index| (index * stride + config.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = count as f64 / steps as f64;
            (0..(count as f64 / stride).ceil() as usize)
                .map(|index| (count as f64 - index as f64 * stride).round_ties_even() - 1.0)
                .collect()
        }
    };
    let sigmas = timesteps.iter().map(|timestep| training.sigma_at(*timestep)).collect();
    (timesteps, sigmas)
}

/// In single precision, as diffusers keeps them.
fn with_last(mut sigmas: Vec<f64>, last: f64) -> Vec<f64> {
    sigmas.push(last);
    sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect()
}

fn spacing(config: &ScheduleConfig) -> TimestepSpacing {
    config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace)
}
