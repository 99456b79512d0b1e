//! DDIM without noise (Song et al. 2020, arXiv 2010.02502, eta = 0), as diffusers' `DDIMScheduler` counts it.

use super::config::{PredictionType, ScheduleConfig, TimestepSpacing};
use super::training::{TrainingSchedule, linspace};
use super::{Denoised, Next, Schedule, Step, denoised};

pub(super) fn schedule(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> Schedule {
    let timesteps = timesteps(training, config, steps);
    let clamp = config.clip_sample.unwrap_or(true).then(|| config.clip_sample_range());
    let stride = (training.len() / steps) as i64;
    let row = |timestep: i64| {
        let alpha = f64::from(training.alphas_cumprod[timestep as usize]);
        let alpha_next = alpha_cumprod_at(training, config, timestep - stride);
        let (signal, noise, noise_next) = (alpha.sqrt(), (1.0 - alpha).sqrt(), (1.0 - alpha_next).sqrt());
        // The noise in the latents, by formula (12): predicted, or from the prediction of the velocity.
        let (latents, output) = match config.prediction_type {
            PredictionType::Epsilon => (0.0, noise_next),
            PredictionType::VPrediction => (noise * noise_next, signal * noise_next),
        };
        Step {
            timestep: timestep as f64,
            input_scale: 1.0,
            denoised: Denoised { clamp, ..denoised(config.prediction_type, signal, noise) },
            corrected: None,
            next: Next { latents, output, denoised: alpha_next.sqrt(), ..Next::default() },
        }
    };
    let ratio = |alpha: f64| ((1.0 - alpha) / alpha).sqrt();
    let last = timesteps.last().map(|timestep| timestep - stride);
    let before_and_after = timesteps.iter().copied().chain(last);
    Schedule {
        init_noise_sigma: 1.0,
        sigmas: before_and_after.map(|timestep| ratio(alpha_cumprod_at(training, config, timestep))).collect(),
        steps: timesteps.iter().copied().map(row).collect(),
    }
}

/// Before the first training timestep there is only the image, or what the checkpoint takes for it.
fn alpha_cumprod_at(training: &TrainingSchedule, config: &ScheduleConfig, timestep: i64) -> f64 {
    match usize::try_from(timestep) {
        Ok(timestep) => f64::from(training.alphas_cumprod[timestep]),
        Err(_) if config.set_alpha_to_one.unwrap_or(true) => 1.0,
        Err(_) => f64::from(training.alphas_cumprod[0]),
    }
}

fn timesteps(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> Vec<i64> {
    let count = training.len();
    match config.timestep_spacing.unwrap_or(TimestepSpacing::Leading) {
        TimestepSpacing::Linspace => {
            linspace(0.0, count as f64 - 1.0, steps).into_iter().rev().map(|t| t.round_ties_even() as i64).collect()
        }
        TimestepSpacing::Leading => {
            let stride = count / steps;
            (0..steps).rev().map(|index| (index * stride + config.steps_offset) as i64).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = count as f64 / steps as f64;
            (0..(count as f64 / stride).ceil() as usize)
                .map(|index| (count as f64 - index as f64 * stride).round_ties_even() as i64 - 1)
                .collect()
        }
    }
}
