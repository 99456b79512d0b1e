//! DPM-Solver++ that goes back to where it started (Lu et al. 2022, arXiv 2211.01095), as diffusers' `DPMSolverSinglestepScheduler` counts it:
//! a step of order 2 or 3 begins again at the latents that its first prediction was made from.

use super::config::{FinalSigma, ScheduleConfig, TimestepSpacing};
use super::dpm_solver::{Equation, Gains, SolverType};
use super::levels::{Grid, solver_timesteps};
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, first, .. } = *input;
    let lowest_lambda = config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY);
    let grid = Grid::of_solver(input, || solver_timesteps(training, config, steps, TimestepSpacing::Linspace, lowest_lambda))
        .ending_at(Grid::final_sigma(training, config));
    let count = grid.timesteps.len();
    let solver_orders = solver_orders(config, count);
    let rows = (first..count).map(|index| {
        // A start in the middle has fewer predictions than the order asks for.
        let order = solver_orders[index].min(index - first + 1);
        let (alpha, sigma) = grid.alpha_sigma(index);
        Step {
            timestep: grid.timesteps[index],
            input_scale: 1.0,
            denoised: Denoised::image(config.prediction_type, alpha, sigma),
            corrected: None,
            next: update(&grid, index, order, SolverType::of(config)),
            keeps_latents: order == 1,
        }
    });
    let steps = rows.collect();
    Schedule::of_unit_variance(grid.sigmas, steps)
}

/// The order of every step: `get_order_list`. Where the steps do not divide evenly, or the noise ends at zero, the last ones are of lower order.
fn solver_orders(config: &ScheduleConfig, steps: usize) -> Vec<usize> {
    let highest = config.solver_order.unwrap_or(2);
    let ends_at_zero = config.final_sigmas_type == FinalSigma::Zero;
    let lower_at_end = config.lower_order_final.unwrap_or(false) || !steps.is_multiple_of(highest) || ends_at_zero;
    let mut solver_orders: Vec<usize> = (0..steps).map(|index| index % highest + 1).collect();
    if lower_at_end && steps.is_multiple_of(highest) {
        // The last group is split: 1, 1 or 1, 2, 1.
        solver_orders[steps - 1] = 1;
    }
    if ends_at_zero {
        solver_orders[steps - 1] = 1;
    }
    solver_orders
}

/// `singlestep_dpm_solver_second_order_update` and `singlestep_dpm_solver_third_order_update`.
fn update(grid: &Grid, index: usize, order: usize, solver: SolverType) -> Next {
    let origin = index + 1 - order;
    let gains = Gains::new(grid, (origin, index + 1), Equation::Ordinary);
    let h = grid.growth(origin, index + 1);
    // Where the later predictions lie in the step.
    let part = |at: usize| h / grid.growth(origin, at);
    match order {
        1 => Next { latents: gains.latents, denoised: gains.level, ..Next::default() },
        2 => {
            let slope = gains.slope(solver) * part(index);
            Next { kept_latents: gains.latents, denoised: slope, before: vec![gains.level - slope], ..Next::default() }
        }
        _ => {
            let slope = gains.slope(SolverType::Heun);
            let middle = part(index - 1);
            let late = part(index);
            let (of_middle, of_late) = match solver {
                SolverType::Midpoint => (0.0, slope),
                SolverType::Heun => {
                    let r_0 = late.recip();
                    let r_1 = middle.recip();
                    let curve = 2.0 * gains.curve();
                    ((slope * r_0 - curve) / (r_0 - r_1), (curve - slope * r_1) / (r_0 - r_1))
                }
            };
            let of_middle = of_middle * middle;
            let of_late = of_late * late;
            let before = vec![of_middle, gains.level - of_middle - of_late];
            Next { kept_latents: gains.latents, denoised: of_late, before, ..Next::default() }
        }
    }
}
