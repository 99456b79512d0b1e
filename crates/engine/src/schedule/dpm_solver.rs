//! DPM-Solver++ over several steps (Lu et al. 2022, arXiv 2211.01095) and its form for the stochastic equation, as diffusers'
//! `DPMSolverMultistepScheduler` counts them.

use super::config::{FinalSigma, ScheduleConfig, TimestepSpacing};
use super::levels::{Grid, solver_timesteps};
use super::multistep::{self, ToCome};
use super::scheduler::Sampler;
use super::step::{Denoised, Next};
use super::{Input, Schedule};

/// What is solved: the equation without noise, or the one that adds fresh noise as it goes (`sde-dpmsolver++`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Equation {
    Ordinary,
    Stochastic,
}

/// How the change of the predictions over a step is weighed: `solver_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SolverType {
    Midpoint,
    Heun,
}

impl SolverType {
    pub(super) fn of(config: &ScheduleConfig) -> Self {
        if config.solver_type.as_deref() == Some("heun") { Self::Heun } else { Self::Midpoint }
    }
}

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, .. } = *input;
    let stochastic = input.plan.scheduler.sampler == Sampler::DpmSolverPlusPlusSde;
    let equation = if stochastic { Equation::Stochastic } else { Equation::Ordinary };
    let lowest_lambda = config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY);
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let grid = Grid::of_solver(input, || solver_timesteps(training, config, steps, spacing, lowest_lambda))
        .ending_at(Grid::final_sigma(training, config));
    let at_end = config.euler_at_final.unwrap_or(false) || config.final_sigmas_type == FinalSigma::Zero;
    multistep::schedule(
        input,
        grid,
        |to_come| match to_come {
            ToCome { steps: 1, few } if few || at_end => 1,
            ToCome { steps: 2, few: true } => 2,
            ToCome { .. } => 3,
        },
        |alpha, sigma| Denoised { limit: config.thresholded(), ..Denoised::image(config.prediction_type, alpha, sigma) },
        |grid, index, order| update(grid, index, order, equation, SolverType::of(config)),
    )
}

/// The step `index` of order 1 to 3: equations (4.1) and (5.3) of the paper and `multistep_dpm_solver_third_order_update`; with noise, those of its
/// appendix.
fn update(grid: &Grid, index: usize, order: usize, equation: Equation, solver: SolverType) -> Next {
    let h = grid.growth(index, index + 1);
    let gains = Gains::new(grid, (index, index + 1), equation);
    let slope = gains.slope(solver);
    let curve = gains.curve();
    let one_back = || h / grid.growth(index - 1, index);
    let (denoised, before) = match order {
        1 => (gains.level, vec![]),
        2 => (gains.level + slope * one_back(), vec![-slope * one_back()]),
        _ => {
            let slope = gains.slope(SolverType::Heun);
            let near = one_back();
            let far = h / grid.growth(index - 2, index - 1);
            // Divided differences over the last three predictions; r as in the source.
            let r_0 = near.recip();
            let r_1 = far.recip();
            let second = (r_0 + r_1).recip();
            let at_near = slope * (1.0 + r_0 * second) + curve * second;
            let at_far = -slope * r_0 * second - curve * second;
            (gains.level + near * at_near, vec![far * at_far - near * at_near, -far * at_far])
        }
    };
    Next { latents: gains.latents, denoised, before, noise: gains.noise, ..Next::default() }
}

/// Integrals over a step, from one noise level of the grid to another.
pub(super) struct Gains {
    pub(super) latents: f64,
    pub(super) noise: f64,
    /// Of the prediction itself.
    pub(super) level: f64,
    /// Twice the step in the log signal-to-noise ratio where there is noise, else the step.
    exponent: f64,
    alpha_next: f64,
    /// The constant in the integral of the second derivative: diffusers' equation with noise has its sign turned.
    half: f64,
}

impl Gains {
    pub(super) fn new(grid: &Grid, (from, to): (usize, usize), equation: Equation) -> Self {
        let (_, sigma) = grid.alpha_sigma(from);
        let (alpha_next, sigma_next) = grid.alpha_sigma(to);
        let h = grid.growth(from, to);
        match equation {
            Equation::Ordinary => Self {
                latents: sigma_next / sigma,
                noise: 0.0,
                level: -alpha_next * (-h).exp_m1(),
                exponent: h,
                alpha_next,
                half: 0.5,
            },
            Equation::Stochastic => {
                let renewed = -(-2.0 * h).exp_m1();
                Self {
                    latents: sigma_next / sigma * (-h).exp(),
                    noise: sigma_next * renewed.sqrt(),
                    level: alpha_next * renewed,
                    exponent: 2.0 * h,
                    alpha_next,
                    half: -0.5,
                }
            }
        }
    }

    /// Of its first derivative.
    pub(super) fn slope(&self, solver: SolverType) -> f64 {
        match solver {
            SolverType::Midpoint => 0.5 * self.level,
            SolverType::Heun => self.alpha_next * ((-self.exponent).exp_m1() / self.exponent + 1.0),
        }
    }

    /// Of its second derivative.
    pub(super) fn curve(&self) -> f64 {
        let grown = (-self.exponent).exp_m1();
        -self.alpha_next * ((grown + self.exponent) / self.exponent.powi(2) - self.half)
    }
}
