//! `UniPC` (Zhao et al. 2023, arXiv 2302.04867) of order 2 in the form B(h) = e^h − 1 (`bh2`), as diffusers'
//! `UniPCMultistepScheduler` counts it.

use super::config::{FinalSigma, ScheduleConfig};
use super::dpm_solver::{Equation, update};
use super::multistep::Grid;
use super::training::TrainingSchedule;
use super::{Corrected, Schedule, Step, denoised};

pub(super) fn schedule(
    training: &TrainingSchedule,
    config: &ScheduleConfig,
    steps: usize,
    first: usize,
    karras: bool,
) -> Schedule {
    let mut grid = Grid::new(training, config, steps, karras, f64::NEG_INFINITY);
    grid.timesteps = grid.timesteps.iter().map(|timestep| timestep.round_ties_even()).collect();
    let count = grid.timesteps.len();
    // Second order has no value where the noise ends, and the first step that is done nothing to look back at.
    let first_order_at_end = config.lower_order_final.unwrap_or(true) || config.final_sigmas_type == FinalSigma::Zero;
    let first_order =
        |index: usize| index <= first || config.solver_order == Some(1) || (index + 1 == count && first_order_at_end);
    let row = |index: usize| {
        let (alpha, sigma) = grid.alpha_sigma(index);
        Step {
            timestep: grid.timesteps[index],
            input_scale: 1.0,
            denoised: denoised(config.prediction_type, alpha, sigma),
            corrected: (index > first).then(|| correct(&grid, index - 1, first_order(index - 1))),
            // In this form the predictor of order 2 is DPM-Solver++'s.
            next: update(&grid, index, first_order(index), Equation::Ordinary),
        }
    };
    let steps = (0..count).map(row).collect();
    Schedule { init_noise_sigma: 1.0, steps, sigmas: grid.sigmas }
}

/// Does step `index` again once the image at its end is known: equation (9) of the paper, its coefficients from (7).
fn correct(grid: &Grid, index: usize, first_order: bool) -> Corrected {
    let (alpha, sigma) = grid.alpha_sigma(index + 1);
    let (_, sigma_before) = grid.alpha_sigma(index);
    let h = -grid.h(index);
    let gain = -alpha * h.exp_m1();
    // Weights of the change over the step before and over this one.
    let (earlier, this) = if first_order {
        (0.0, 0.5)
    } else {
        let ratio = grid.h(index - 1) / h;
        let phi_2 = h.exp_m1() / h - 1.0;
        let phi_3 = phi_2 / h - 0.5;
        let (b_1, b_2) = (phi_2 / h.exp_m1(), 2.0 * phi_3 / h.exp_m1());
        let rho = (b_1 - b_2) / (1.0 - ratio);
        (rho / ratio, b_1 - rho)
    };
    Corrected {
        previous_latents: sigma / sigma_before,
        denoised: gain * this,
        previous_denoised: gain * (1.0 - this - earlier),
        earlier_denoised: gain * earlier,
    }
}
