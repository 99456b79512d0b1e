//! DEIS over several steps in log rho (Zhang and Chen 2022, arXiv 2204.13902), as diffusers' `DEISMultistepScheduler` counts it. What a step
//! predicts is the noise.

use super::config::TimestepSpacing;
use super::levels::{FEW_STEPS, Grid, solver_timesteps};
use super::spacing::Spacing;
use super::step::{Denoised, Next, Step};
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, first, .. } = *input;
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let grid = Grid::of_solver(input, || solver_timesteps(training, config, steps, spacing, f64::NEG_INFINITY));
    // The noise never ends: it would have no logarithm.
    let last = match (input.spacing, grid.sigmas.last()) {
        (Spacing::Spaced(_) | Spacing::Lu, Some(last)) => *last,
        _ => training.sigma_min(),
    };
    let grid = grid.ending_at(last);
    let count = grid.timesteps.len();
    let few = config.lower_order_final.unwrap_or(true) && count < FEW_STEPS;
    let rows = (first..count).map(|index| {
        let highest = if few { count - index } else { 3 };
        let order = config.solver_order.unwrap_or(2).min(highest).min(index - first + 1);
        let (alpha, sigma) = grid.alpha_sigma(index);
        Step {
            timestep: grid.timesteps[index],
            input_scale: 1.0,
            denoised: Denoised::noise(config.prediction_type, alpha, sigma),
            corrected: None,
            next: update(&grid, index, order),
            keeps_latents: false,
        }
    });
    let steps = rows.collect();
    Schedule::of_unit_variance(grid.sigmas, steps)
}

fn update(grid: &Grid, index: usize, order: usize) -> Next {
    let (alpha, _) = grid.alpha_sigma(index);
    let (alpha_next, sigma_next) = grid.alpha_sigma(index + 1);
    let latents = alpha_next / alpha;
    if order == 1 {
        return Next { latents, denoised: -sigma_next * grid.growth(index, index + 1).exp_m1(), ..Next::default() };
    }
    let nodes: Vec<f64> = (0..order).map(|back| grid.sigmas[index - back]).collect();
    let from = grid.sigmas[index];
    let to = grid.sigmas[index + 1];
    let mut weights = (0..order).map(|node| alpha_next * weight(&nodes, node, from, to));
    let denoised = weights.next().unwrap_or_default();
    Next { latents, denoised, before: weights.collect(), ..Next::default() }
}

/// The integral, from one noise level to another, of the polynomial in their logarithm that is 1 at `node` and 0 at the other nodes.
fn weight(nodes: &[f64], node: usize, from: f64, to: f64) -> f64 {
    let others: Vec<f64> = (0..nodes.len()).filter(|other| *other != node).map(|other| nodes[other].ln()).collect();
    let scale: f64 = others.iter().map(|other| nodes[node].ln() - other).product();
    let antiderivative = |level: f64| {
        let log = level.ln();
        match *others {
            [one] => level * (log - one - 1.0),
            [one, other] => level * (log * log - (one + other + 2.0) * log + one * other + one + other + 2.0),
            _ => level,
        }
    };
    (antiderivative(to) - antiderivative(from)) / scale
}
