//! Trajectory consistency distillation (Zheng et al. 2024, arXiv 2402.19159), as diffusers' `TCDScheduler` counts it. Its pipelines hand it an
//! `eta` of 0 where a job says nothing.

use super::config::PredictionType;
use super::lcm::distilled_timesteps;
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule, ScheduleError};

pub(super) fn schedule(input: &Input<'_>) -> Result<Schedule, ScheduleError> {
    let Input { training, config, first, .. } = *input;
    let timesteps = distilled_timesteps(input)?;
    let eta = input.plan.eta;
    let rows = (first..timesteps.len()).map(|index| {
        let timestep = timesteps[index];
        let (signal, noise) = training.alpha_sigma(timestep);
        let next = timesteps.get(index + 1).copied();
        // Further down the trajectory than the next step, and back up by fresh noise. In single precision, as torch multiplies.
        let target = ((1.0 - eta) as f32 * next.unwrap_or(0) as f32).floor() as i64;
        let (signal_target, noise_target) = training.alpha_sigma(target);
        let (kept, fresh) = match next {
            Some(next) if eta > 0.0 => {
                let kept = training.alpha_cumprod(next) / training.alpha_cumprod(target);
                (kept.sqrt(), (1.0 - kept).max(0.0).sqrt())
            }
            _ => (1.0, 0.0),
        };
        // The noise in the latents: predicted, or from the prediction of the velocity.
        let (latents, output) = match config.prediction_type {
            PredictionType::Epsilon => (0.0, noise_target),
            PredictionType::VPrediction => (noise * noise_target, signal * noise_target),
        };
        Step {
            timestep: timestep as f64,
            input_scale: 1.0,
            denoised: Denoised::image(config.prediction_type, signal, noise),
            corrected: None,
            next: Next {
                latents: kept * latents,
                output: kept * output,
                denoised: kept * signal_target,
                noise: fresh,
                ..Next::default()
            },
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    let sigmas = timesteps.iter().map(|timestep| training.ratio(*timestep)).chain([0.0]).collect();
    Ok(Schedule::of_unit_variance(sigmas, steps))
}
