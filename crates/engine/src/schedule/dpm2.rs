//! DPM-Solver-2 and its ancestral form (Karras et al. 2022, arXiv 2206.00364, algorithm 2; k-diffusion), as diffusers'
//! `KDPM2DiscreteScheduler` and `KDPM2AncestralDiscreteScheduler` count them: half a step in the logarithm of the noise, and the complete step
//! along the slope found there. The last step is Euler's.

use super::euler::ancestral_parts;
use super::levels::Grid;
use super::scheduler::SigmaSpacing;
use super::spacing::Spacing;
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    table(input, |_, sigma_next| (sigma_next, 0.0))
}

pub(super) fn ancestral_schedule(input: &Input<'_>) -> Schedule {
    table(input, ancestral_parts)
}

/// `parts`: the noise level that a step goes down to, and the noise it adds there.
fn table(input: &Input<'_>, parts: fn(f64, f64) -> (f64, f64)) -> Schedule {
    let Input { training, config, .. } = *input;
    let grid = Grid::of_k_diffusion(input).ending_at(0.0);
    let rows = (input.first..(2 * grid.timesteps.len()).saturating_sub(1)).map(|call| {
        let step = call / 2;
        let second = call % 2 == 1;
        let from = grid.sigmas[step];
        let (down, up) = parts(from, grid.sigmas[step + 1]);
        let middle = (from * down).sqrt();
        let (seen, timestep) = match input.spacing {
            _ if second => (middle, training.timestep_of(middle)),
            // Karras' noise levels alone have whole timesteps here.
            Spacing::Spaced(SigmaSpacing::Karras) => (from, grid.timesteps[step].round_ties_even()),
            _ => (from, grid.timesteps[step]),
        };
        let next = if second {
            Next { kept_latents: 1.0, denoised: down - from, noise: up, ..Next::default() }
        } else {
            Next { latents: 1.0, denoised: middle - from, ..Next::default() }
        };
        Step {
            timestep,
            input_scale: (seen * seen + 1.0).sqrt().recip(),
            denoised: Denoised::slope(config.prediction_type, seen, None),
            corrected: None,
            next,
            keeps_latents: !second,
        }
    });
    let steps = rows.collect();
    // As diffusers has them: twice, but for the first, and the last once more.
    let after_first = grid.sigmas[1..].iter().flat_map(|sigma| [*sigma; 2]);
    let sigmas = grid.sigmas[..1].iter().copied().chain(after_first).chain([0.0]).collect();
    Schedule::under_noise(config, sigmas, steps)
}
