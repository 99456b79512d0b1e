//! The linear multistep method of Katherine Crowson's k-diffusion, as diffusers' `LMSDiscreteScheduler` counts it. What a step predicts is the slope
//! of the latents over the noise level.

use super::levels::Grid;
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

/// Slopes that a step looks at, its own among them.
const ORDER: usize = 4;

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { config, first, .. } = *input;
    let grid = Grid::of_k_diffusion(input).ending_at(0.0);
    let rows = (first..grid.timesteps.len()).map(|index| {
        let sigma = grid.sigmas[index];
        // The weights are those of a start at the first step; a start in the middle has fewer slopes, and leaves the others out.
        let order = ORDER.min(index + 1);
        let known = ORDER.min(index - first + 1);
        let mut weights = (0..known).map(|back| weight(&grid.sigmas, index, order, back));
        let denoised = weights.next().unwrap_or_default();
        Step {
            timestep: grid.timesteps[index],
            input_scale: (sigma * sigma + 1.0).sqrt().recip(),
            denoised: Denoised::slope(config.prediction_type, sigma, None),
            corrected: None,
            next: Next { latents: 1.0, denoised, before: weights.collect(), ..Next::default() },
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    Schedule::under_noise(config, grid.sigmas.clone(), steps)
}

/// The integral, over step `index`, of the polynomial that is 1 at the noise level `back` steps ago and 0 at the others of `order`.
fn weight(sigmas: &[f64], index: usize, order: usize, back: usize) -> f64 {
    /// Gauss' quadrature with two points: exact for polynomials of the third degree.
    const POINT: f64 = 0.577_350_269_189_625_8;
    let from = sigmas[index];
    let to = sigmas[index + 1];
    let polynomial = |sigma: f64| -> f64 {
        let others = (0..order).filter(|other| *other != back);
        others.map(|other| (sigma - sigmas[index - other]) / (sigmas[index - back] - sigmas[index - other])).product()
    };
    let middle = f64::midpoint(from, to);
    let half = (to - from) / 2.0;
    half * (polynomial(middle - half * POINT) + polynomial(middle + half * POINT))
}
