//! DDIM (Song et al. 2020, arXiv 2010.02502), as diffusers' `DDIMScheduler` counts it.

use super::config::{PredictionType, ScheduleConfig, TimestepSpacing};
use super::levels::whole_timesteps;
use super::step::{Denoised, Next, Step};
use super::training::TrainingSchedule;
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, first, .. } = *input;
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
    let timesteps = whole_timesteps(training, config, steps, spacing);
    let clamp = config.clip_sample.unwrap_or(true).then(|| config.clip_sample_range());
    let stride = (training.len() / steps) as i64;
    let rows = (first..timesteps.len()).map(|index| {
        let timestep = timesteps[index];
        let (signal, noise) = training.alpha_sigma(timestep);
        let alpha_next = alpha_cumprod_at(training, config, timestep - stride);
        // Formula (16): how much of the noise is drawn anew.
        let alpha = training.alpha_cumprod(timestep);
        let variance = (1.0 - alpha_next) / (1.0 - alpha) * (1.0 - alpha / alpha_next);
        let fresh = input.plan.eta * variance.max(0.0).sqrt();
        let noise_next = (1.0 - alpha_next - fresh * fresh).max(0.0).sqrt();
        // The noise in the latents, by formula (12): predicted, or from the prediction of the velocity.
        let (latents, output) = match config.prediction_type {
            PredictionType::Epsilon => (0.0, noise_next),
            PredictionType::VPrediction => (noise * noise_next, signal * noise_next),
        };
        Step {
            timestep: timestep as f64,
            input_scale: 1.0,
            denoised: Denoised { clamp, ..Denoised::image(config.prediction_type, signal, noise) },
            corrected: None,
            next: Next { latents, output, denoised: alpha_next.sqrt(), noise: fresh, ..Next::default() },
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    let last = timesteps.last().map(|timestep| timestep - stride);
    let before_and_after = timesteps.iter().copied().chain(last);
    let sigmas = before_and_after.map(|timestep| {
        let alpha = alpha_cumprod_at(training, config, timestep);
        ((1.0 - alpha) / alpha).sqrt()
    });
    Schedule::of_unit_variance(sigmas.collect(), steps)
}

/// Before the first training timestep there is only the image, or what the checkpoint takes for it.
fn alpha_cumprod_at(training: &TrainingSchedule, config: &ScheduleConfig, timestep: i64) -> f64 {
    if timestep < 0 && config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { training.alpha_cumprod(timestep) }
}
