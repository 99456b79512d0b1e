//! DEIS over several steps in log rho (Zhang and Chen 2022, arXiv 2204.13902), as diffusers' `DEISMultistepScheduler` counts it. What a step
//! predicts is the noise.

use super::config::TimestepSpacing;
use super::levels::{Grid, solver_timesteps};
use super::multistep::{self, ToCome};
use super::spacing::Spacing;
use super::step::{Denoised, Next};
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, .. } = *input;
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let grid = Grid::of_solver(input, || solver_timesteps(training, config, steps, spacing, f64::NEG_INFINITY));
    // The noise never ends: it would have no logarithm.
    let last = match (input.spacing, grid.sigmas.last()) {
        (Spacing::Spaced(_) | Spacing::Lu, Some(last)) => *last,
        _ => training.sigma_min(),
    };
    multistep::schedule(
        input,
        grid.ending_at(last),
        |ToCome { steps, few }| if few { steps } else { 3 },
        |alpha, sigma| match config.thresholded() {
            Some(limit) => Denoised::noise_with_limit(limit, config.prediction_type, alpha, sigma),
            None => Denoised::noise(config.prediction_type, alpha, sigma),
        },
        update,
    )
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
