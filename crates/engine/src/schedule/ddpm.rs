//! DDPM (Ho et al. 2020, arXiv 2006.11239), as diffusers' `DDPMScheduler` counts it.

use super::config::TimestepSpacing;
use super::levels::whole_timesteps;
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

/// The least variance of a step, so that it has a logarithm.
const LEAST_VARIANCE: f64 = 1e-20;

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, first, .. } = *input;
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
    let given = input.plan.timesteps.map(|timesteps| timesteps.iter().copied().map(i64::from).collect());
    let timesteps: Vec<i64> = given.unwrap_or_else(|| whole_timesteps(training, config, steps, spacing));
    let clamp = config.clip_sample.unwrap_or(true).then(|| config.clip_sample_range());
    let rows = (first..timesteps.len()).map(|index| {
        let timestep = timesteps[index];
        let (signal, noise) = training.alpha_sigma(timestep);
        let alpha = training.alpha_cumprod(timestep);
        let alpha_next = timesteps.get(index + 1).map_or(1.0, |next| training.alpha_cumprod(*next));
        let kept = alpha / alpha_next;
        let added = 1.0 - alpha / alpha_next;
        let posterior = ((1.0 - alpha_next) / (1.0 - alpha) * added).max(LEAST_VARIANCE);
        let variance = if config.variance_type.as_deref() == Some("fixed_large") { added } else { posterior };
        // Formula (7).
        Step {
            timestep: timestep as f64,
            input_scale: 1.0,
            denoised: Denoised { clamp, ..Denoised::image(config.prediction_type, signal, noise) },
            corrected: None,
            next: Next {
                latents: kept.sqrt() * (1.0 - alpha_next) / (1.0 - alpha),
                denoised: alpha_next.sqrt() * added / (1.0 - alpha),
                noise: if timestep > 0 { variance.sqrt() } else { 0.0 },
                ..Next::default()
            },
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    let sigmas = timesteps.iter().map(|timestep| training.ratio(*timestep)).chain([0.0]).collect();
    Schedule::of_unit_variance(sigmas, steps)
}
