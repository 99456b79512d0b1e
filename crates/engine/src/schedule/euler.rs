//! Euler and Euler ancestral (Karras et al. 2022, arXiv 2206.00364; k-diffusion), as diffusers' `EulerDiscreteScheduler`
//! and `EulerAncestralDiscreteScheduler` count them.

use super::levels::Grid;
use super::spacing::Spacing;
use super::step::{Denoised, Next, Step};
use super::training::linspace;
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, .. } = *input;
    if let Some(sigmas) = input.plan.sigmas {
        let (last, before) = sigmas.split_last().unwrap_or((&0.0, &[]));
        let single = before.iter().map(|sigma| f64::from(*sigma as f32)).collect();
        return table(input, &Grid::at_sigmas(training, single).ending_at(*last), euler);
    }
    let mut grid = Grid::of_k_diffusion(input);
    if input.log_linear() && input.spacing == Spacing::Trained {
        // One more than there are steps: what the last step leaves is the lowest of them.
        let logs = linspace(training.sigma_max().ln(), training.sigma_min().ln(), steps + 1);
        grid.sigmas = logs.into_iter().map(|log| f64::from(log.exp() as f32)).collect();
    }
    table(input, &grid.ending_at(Grid::final_sigma(training, config)), euler)
}

pub(super) fn ancestral_schedule(input: &Input<'_>) -> Schedule {
    table(input, &Grid::of_k_diffusion(input).ending_at(0.0), ancestral)
}

/// The straight line from the latents through the denoised image, followed until `sigma_next`.
fn euler(sigma: f64, sigma_next: f64) -> Next {
    Next { latents: sigma_next / sigma, denoised: 1.0 - sigma_next / sigma, ..Next::default() }
}

/// Goes further down than `sigma_next`, and back up by fresh noise.
fn ancestral(sigma: f64, sigma_next: f64) -> Next {
    let (down, up) = ancestral_parts(sigma, sigma_next);
    Next { noise: up, ..euler(sigma, down) }
}

/// The noise level that a step goes down to, and the noise that it adds there.
pub(super) fn ancestral_parts(sigma: f64, sigma_next: f64) -> (f64, f64) {
    let up = (sigma_next.powi(2) * (sigma.powi(2) - sigma_next.powi(2)) / sigma.powi(2)).sqrt();
    ((sigma_next.powi(2) - up.powi(2)).max(0.0).sqrt(), up)
}

fn table(input: &Input<'_>, grid: &Grid, next: fn(f64, f64) -> Next) -> Schedule {
    let rows = (input.first..grid.timesteps.len()).map(|index| {
        let sigma = grid.sigmas[index];
        Step {
            timestep: grid.timesteps[index],
            // Latents here are image + sigma·noise; the UNet wants variance 1.
            input_scale: (sigma * sigma + 1.0).sqrt().recip(),
            denoised: Denoised::image_under(input.config.prediction_type, sigma),
            corrected: None,
            next: next(sigma, grid.sigmas[index + 1]),
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    Schedule::under_noise(input.config, grid.sigmas.clone(), steps)
}
