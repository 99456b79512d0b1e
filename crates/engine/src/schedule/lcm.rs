//! Latent consistency models (Luo et al. 2023, arXiv 2310.04378), as diffusers' `LCMScheduler` counts them.

use super::config::ScheduleConfig;
use super::training::TrainingSchedule;
use super::{Denoised, Next, Schedule, ScheduleError, Step, denoised};

/// Standard deviation of the images, in the boundary condition.
const SIGMA_DATA: f64 = 0.5;
/// What timesteps are multiplied by there, unless the checkpoint says otherwise.
const TIMESTEP_SCALING: f64 = 10.0;

pub(super) fn schedule(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> Result<Schedule, ScheduleError> {
    let timesteps = timesteps(training, config, steps)?;
    let clamp = config.clip_sample.unwrap_or(false).then(|| config.clip_sample_range());
    let alpha_at = |timestep: usize| f64::from(training.alphas_cumprod[timestep]);
    let row = |(index, timestep): (usize, &usize)| {
        let (signal, noise) = (alpha_at(*timestep).sqrt(), (1.0 - alpha_at(*timestep)).sqrt());
        let scaled = *timestep as f64 * config.timestep_scaling.unwrap_or(TIMESTEP_SCALING);
        let length = scaled.hypot(SIGMA_DATA);
        // How much of the latents is kept, and of the predicted image: all of the latents at timestep 0.
        let (skip, out) = ((SIGMA_DATA / length).powi(2), scaled / length);
        // The image is noised again for the next step.
        let (signal_next, noise_next) = match timesteps.get(index + 1) {
            Some(next) => (alpha_at(*next).sqrt(), (1.0 - alpha_at(*next)).sqrt()),
            None => (1.0, 0.0),
        };
        Step {
            timestep: *timestep as f64,
            input_scale: 1.0,
            denoised: Denoised { clamp, ..denoised(config.prediction_type, signal, noise) },
            corrected: None,
            next: Next { latents: signal_next * skip, denoised: signal_next * out, noise: noise_next, ..Next::default() },
        }
    };
    let ratio = |timestep: &usize| f64::from(training.sigmas[*timestep]);
    Ok(Schedule {
        init_noise_sigma: 1.0,
        sigmas: timesteps.iter().map(ratio).chain([0.0]).collect(),
        steps: timesteps.iter().enumerate().map(row).collect(),
    })
}

/// Evenly spaced among the timesteps that the model was distilled on.
fn timesteps(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> Result<Vec<usize>, ScheduleError> {
    let distilled = config.original_inference_steps();
    if steps > distilled {
        return Err(ScheduleError::TooManySteps { most: distilled, steps });
    }
    let stride = training.len() / distilled;
    let step = distilled as f64 / steps as f64;
    let skipped = (0..steps).map(|index| (index as f64 * step).floor() as usize);
    Ok(skipped.map(|skipped| (distilled - skipped) * stride - 1).collect())
}
