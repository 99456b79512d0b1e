//! Heun's method (Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn), as diffusers' `HeunDiscreteScheduler` counts it: a step
//! of Euler, and once more from the same latents with the mean of the slopes at both ends. The last step is Euler's alone.

use super::levels::Grid;
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let config = input.config;
    let grid = Grid::of_k_diffusion(input).ending_at(0.0);
    let clamp = config.clip_sample.unwrap_or(false).then(|| config.clip_sample_range());
    let rows = (input.first..(2 * grid.timesteps.len()).saturating_sub(1)).map(|call| {
        // The second call of a step looks from its end.
        let step = call / 2;
        let second = call % 2 == 1;
        let from = grid.sigmas[step];
        let to = grid.sigmas[step + 1];
        let seen = if second { to } else { from };
        let next = if second {
            // Half the way along either slope.
            let at_start = (to - from) / (2.0 * from);
            let at_end = (to - from) / (2.0 * to);
            Next {
                kept_latents: 1.0 + at_start,
                before: vec![-at_start],
                latents: at_end,
                denoised: -at_end,
                ..Next::default()
            }
        } else {
            Next { latents: to / from, denoised: 1.0 - to / from, ..Next::default() }
        };
        Step {
            timestep: grid.timesteps[if second { step + 1 } else { step }],
            input_scale: (seen * seen + 1.0).sqrt().recip(),
            denoised: Denoised { clamp, ..Denoised::image_under(config.prediction_type, seen) },
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
