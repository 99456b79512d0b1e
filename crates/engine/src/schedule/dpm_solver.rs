//! DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095) and its form for the stochastic equation, as diffusers'
//! `DPMSolverMultistepScheduler` counts them.

use super::config::{BetaSchedule, FinalSigma, ScheduleConfig};
use super::multistep::Grid;
use super::training::TrainingSchedule;
use super::{Next, Schedule, Step, denoised};

/// With fewer steps `lower_order_final` makes the last one of first order.
const FEW_STEPS: usize = 15;

/// What is solved: the equation without noise, or the one that adds fresh noise as it goes (`sde-dpmsolver++`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Equation {
    Ordinary,
    Stochastic,
}

pub(super) fn schedule(
    training: &TrainingSchedule,
    config: &ScheduleConfig,
    steps: usize,
    first: usize,
    karras: bool,
    equation: Equation,
) -> Schedule {
    let mut grid = Grid::new(training, config, steps, karras, config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY));
    if karras {
        let whole = |timestep: &f64| match config.beta_schedule() {
            BetaSchedule::SquaredcosCapV2 => timestep.trunc(),
            _ => timestep.round_ties_even(),
        };
        grid.timesteps = grid.timesteps.iter().map(whole).collect();
    }
    let first_order_at_end = config.euler_at_final.unwrap_or(false)
        || (config.lower_order_final.unwrap_or(true) && steps < FEW_STEPS)
        || config.final_sigmas_type == FinalSigma::Zero;
    let row = |index: usize| {
        let last = index + 1 == grid.timesteps.len();
        // The first step that is done has nothing to look back at.
        let first_order = index <= first || config.solver_order == Some(1) || (last && first_order_at_end);
        let (alpha, sigma) = grid.alpha_sigma(index);
        Step {
            timestep: grid.timesteps[index],
            input_scale: 1.0,
            denoised: denoised(config.prediction_type, alpha, sigma),
            corrected: None,
            next: update(&grid, index, first_order, equation),
        }
    };
    let steps = (0..grid.timesteps.len()).map(row).collect();
    Schedule { init_noise_sigma: 1.0, steps, sigmas: grid.sigmas }
}

/// Equation (4.1) of the paper, and (5.3), the midpoint form of second order; with noise, both of its appendix.
pub(super) fn update(grid: &Grid, index: usize, first_order: bool, equation: Equation) -> Next {
    let (alpha_next, sigma_next) = grid.alpha_sigma(index + 1);
    let (_, sigma) = grid.alpha_sigma(index);
    let h = grid.h(index);
    let (latents, gain, noise) = match equation {
        Equation::Ordinary => (sigma_next / sigma, -alpha_next * (-h).exp_m1(), 0.0),
        Equation::Stochastic => {
            let renewed = -(-2.0 * h).exp_m1();
            (sigma_next / sigma * (-h).exp(), alpha_next * renewed, sigma_next * renewed.sqrt())
        }
    };
    let correction = if first_order { 0.0 } else { 0.5 * gain * h / grid.h(index - 1) };
    Next { latents, denoised: gain + correction, previous_denoised: -correction, noise, ..Next::default() }
}
