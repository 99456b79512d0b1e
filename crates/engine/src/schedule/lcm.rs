//! Latent consistency models (Luo et al. 2023, arXiv 2310.04378), as diffusers' `LCMScheduler` counts them.

use super::step::{Denoised, Next, Step};
use super::{Input, Schedule, ScheduleError};

/// Standard deviation of the images, in the boundary condition.
const SIGMA_DATA: f64 = 0.5;
/// What timesteps are multiplied by there, unless the checkpoint says otherwise.
const TIMESTEP_SCALING: f64 = 10.0;

pub(super) fn schedule(input: &Input<'_>) -> Result<Schedule, ScheduleError> {
    let Input { training, config, first, .. } = *input;
    let timesteps = distilled_timesteps(input)?;
    let clamp = config.clip_sample.unwrap_or(false).then(|| config.clip_sample_range());
    let rows = (first..timesteps.len()).map(|index| {
        let timestep = timesteps[index];
        let (signal, noise) = training.alpha_sigma(timestep);
        let scaled = timestep as f64 * config.timestep_scaling.unwrap_or(TIMESTEP_SCALING);
        let length = scaled.hypot(SIGMA_DATA);
        // How much of the latents is kept, and of the predicted image: all of the latents at timestep 0.
        let skip = (SIGMA_DATA / length).powi(2);
        let out = scaled / length;
        // The image is noised again for the next step.
        let (signal_next, noise_next) = timesteps.get(index + 1).map_or((1.0, 0.0), |next| training.alpha_sigma(*next));
        Step {
            timestep: timestep as f64,
            input_scale: 1.0,
            denoised: Denoised { clamp, ..Denoised::image(config.prediction_type, signal, noise) },
            corrected: None,
            next: Next { latents: signal_next * skip, denoised: signal_next * out, noise: noise_next, ..Next::default() },
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    let sigmas = timesteps.iter().map(|timestep| training.ratio(*timestep)).chain([0.0]).collect();
    Ok(Schedule::of_unit_variance(sigmas, steps))
}

/// Evenly spaced among the timesteps that the model was distilled on, or those that the job lists.
pub(super) fn distilled_timesteps(input: &Input<'_>) -> Result<Vec<i64>, ScheduleError> {
    if let Some(timesteps) = input.plan.timesteps {
        return Ok(timesteps.iter().copied().map(i64::from).collect());
    }
    let distilled = input.config.original_inference_steps();
    let steps = input.steps;
    let scheduler = input.plan.scheduler.sampler.as_str();
    let trained = input.training.len();
    if distilled == 0 || distilled > trained {
        let key = "original_inference_steps";
        let found = distilled.to_string();
        return Err(ScheduleError::Setting { scheduler, key, found, supported: "1 to num_train_timesteps" });
    }
    if steps > distilled {
        return Err(ScheduleError::TooManySteps { max: distilled, steps, scheduler });
    }
    let stride = trained / distilled;
    let step = distilled as f64 / steps as f64;
    let skipped = (0..steps).map(|index| (index as f64 * step).floor() as usize);
    Ok(skipped.map(|skipped| ((distilled - skipped) * stride) as i64 - 1).collect())
}
