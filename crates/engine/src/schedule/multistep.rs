//! What the solvers that look back over several steps have in common: DPM-Solver++ and DEIS.

use super::levels::{FEW_STEPS, Grid};
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

/// The end of a run: how many steps are left, itself among them, and whether the last ones are to be of lower order because there are few.
pub(super) struct ToCome {
    pub(super) steps: usize,
    pub(super) few: bool,
}

/// The table over `grid`. `highest`: the order a step may have at most; `denoised`: what is predicted at (alpha, sigma); `next`: step `index` of an
/// order.
pub(super) fn schedule(
    input: &Input<'_>,
    grid: Grid,
    highest: impl Fn(ToCome) -> usize,
    denoised: impl Fn(f64, f64) -> Denoised,
    next: impl Fn(&Grid, usize, usize) -> Next,
) -> Schedule {
    let Input { config, first, .. } = *input;
    let count = grid.timesteps.len();
    let few = config.lower_order_final.unwrap_or(true) && count < FEW_STEPS;
    let rows = (first..count).map(|index| {
        let highest = highest(ToCome { steps: count - index, few });
        // The first step that is done has nothing to look back at.
        let order = config.solver_order.unwrap_or(2).min(highest).min(index - first + 1);
        let (alpha, sigma) = grid.alpha_sigma(index);
        Step {
            timestep: grid.timesteps[index],
            input_scale: 1.0,
            denoised: denoised(alpha, sigma),
            corrected: None,
            next: next(&grid, index, order),
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    Schedule::of_unit_variance(grid.sigmas, steps)
}
