//! Heun's method (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn), as diffusers' `HeunDiscreteScheduler` counts it: a step
//! of Euler, and once more from the same latents with the mean of the slopes at both ends. The last step is Euler's alone.

use super::levels::Grid;
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let config = input.config;
    let grid = Grid::of_k_diffusion(input).ending_at(0.0);
    let limit = config.clamped(false);
    let rows = (input.first..(2 * grid.timesteps.len()).saturating_sub(1)).map(|call| {
        // The second call of a step looks from its end.
        let step = call / 2;
        let second = call % 2 == 1;
        let from = grid.sigmas[step];
        let to = grid.sigmas[step + 1];
        let seen = if second { to } else { from };
        let next = if second {
            // Half the way along either slope.
            let half = (to - from) / 2.0;
            Next { kept_latents: 1.0, before: vec![half], denoised: half, ..Next::default() }
        } else {
            Next { latents: 1.0, denoised: to - from, ..Next::default() }
        };
        Step {
            timestep: grid.timesteps[if second { step + 1 } else { step }],
            input_scale: (seen * seen + 1.0).sqrt().recip(),
            denoised: Denoised::slope(config.prediction_type, seen, limit),
            corrected: None,
            next,
            keeps_latents: !second,
        }
    });
    let steps = rows.collect();
    let last = grid.sigmas.len() - 1;
    // As often as diffusers has them: twice between the ends.
    let sigmas = grid.sigmas.iter().enumerate();
    let sigmas = sigmas.flat_map(|(index, sigma)| vec![*sigma; if index == 0 || index == last { 1 } else { 2 }]).collect();
    Schedule::under_noise(config, sigmas, steps)
}
