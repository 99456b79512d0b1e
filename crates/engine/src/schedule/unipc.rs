//! `UniPC` (Zhao et al. 2023, arXiv 2302.04867) in the forms B(h) = h (`bh1`) and B(h) = e^h − 1 (`bh2`), as diffusers'
//! `UniPCMultistepScheduler` counts it.

use super::config::{FinalSigma, ScheduleConfig, TimestepSpacing};
use super::levels::{Grid, solver_timesteps};
use super::spacing::Spacing;
use super::step::{Corrected, Denoised, Next, Step};
use super::{Input, Schedule};

pub(super) fn schedule(input: &Input<'_>) -> Schedule {
    let Input { training, config, steps, first, .. } = *input;
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let grid = Grid::of_solver(input, || solver_timesteps(training, config, steps, spacing, f64::NEG_INFINITY));
    let last = match (config.final_sigmas_type, input.spacing, grid.sigmas.last()) {
        (FinalSigma::SigmaMin, Spacing::Spaced(_) | Spacing::Lu, Some(last)) => *last,
        _ => Grid::final_sigma(training, config),
    };
    let grid = grid.ending_at(last);
    let count = grid.timesteps.len();
    let order = |index: usize| {
        let to_come = count - index;
        let highest = match to_come {
            _ if config.lower_order_final.unwrap_or(true) => to_come,
            // A higher order has no value where the noise ends.
            1 if config.final_sigmas_type == FinalSigma::Zero => 1,
            _ => 3,
        };
        // The first step that is done has nothing to look back at.
        config.solver_order.unwrap_or(2).min(highest).min(index - first + 1)
    };
    let uncorrected = config.disable_corrector.as_deref().unwrap_or_default();
    let rows = (first..count).map(|index| {
        let (alpha, sigma) = grid.alpha_sigma(index);
        let corrects = index > first && !uncorrected.contains(&(index - 1));
        Step {
            timestep: grid.timesteps[index],
            input_scale: 1.0,
            denoised: Denoised::image(config.prediction_type, alpha, sigma),
            corrected: corrects.then(|| correct(config, &grid, index - 1, order(index - 1))),
            next: predict(config, &grid, index, order(index)),
            keeps_latents: true,
        }
    });
    let steps = rows.collect();
    Schedule::of_unit_variance(grid.sigmas, steps)
}

/// Step `index`: equation (8) of the paper.
fn predict(config: &ScheduleConfig, grid: &Grid, index: usize, order: usize) -> Next {
    let terms = Terms::new(config, grid, index, order);
    let weights = match order {
        1 => vec![],
        // In closed form, whatever the two points are.
        2 => vec![0.5],
        _ => solved(&terms.powers[..order - 1], &terms.moments[..order - 1]),
    };
    let changes: Vec<f64> = weights.iter().zip(&terms.places).map(|(weight, place)| terms.gain * weight / place).collect();
    let denoised = terms.level - changes.iter().sum::<f64>();
    Next { latents: terms.latents, denoised, before: changes, ..Next::default() }
}

/// Does step `index` again once the image at its end is known: equation (9) of the paper, its coefficients from (7).
fn correct(config: &ScheduleConfig, grid: &Grid, index: usize, order: usize) -> Corrected {
    let terms = Terms::new(config, grid, index, order);
    let mut weights = if order == 1 { vec![0.5] } else { solved(&terms.powers, &terms.moments) };
    let this = terms.gain * weights.pop().unwrap_or_default();
    let changes: Vec<f64> = weights.iter().zip(&terms.places).map(|(weight, place)| terms.gain * weight / place).collect();
    let previous = terms.level - this - changes.iter().sum::<f64>();
    let before = std::iter::once(previous).chain(changes).collect();
    Corrected { kept_latents: terms.latents, denoised: this, before }
}

struct Terms {
    latents: f64,
    /// Of the prediction itself.
    level: f64,
    /// Of the weighted changes.
    gain: f64,
    /// Where the predictions before lie, in steps; negative.
    places: Vec<f64>,
    /// Powers of the places and of 1, from the zeroth on.
    powers: Vec<Vec<f64>>,
    moments: Vec<f64>,
}

impl Terms {
    fn new(config: &ScheduleConfig, grid: &Grid, index: usize, order: usize) -> Self {
        let (alpha, sigma) = grid.alpha_sigma(index + 1);
        let (_, sigma_before) = grid.alpha_sigma(index);
        let step = grid.growth(index, index + 1);
        let h = -step;
        let grown = h.exp_m1();
        let bh1 = config.solver_type.as_deref() == Some("bh1");
        let divisor = if bh1 { h } else { grown };
        let places: Vec<f64> = (1..order).map(|back| -grid.growth(index - back, index) / step).collect();
        let points: Vec<f64> = places.iter().copied().chain([1.0]).collect();
        let powers = (0..order).map(|power| points.iter().map(|point| point.powi(power as i32)).collect()).collect();
        let mut phi = grown / h - 1.0;
        let mut factorial = 1.0;
        let mut moments = Vec::with_capacity(order);
        for power in 1..=order {
            moments.push(phi * factorial / divisor);
            factorial *= power as f64 + 1.0;
            phi = phi / h - 1.0 / factorial;
        }
        Self { latents: sigma / sigma_before, level: -alpha * grown, gain: -alpha * divisor, places, powers, moments }
    }
}

/// The solution of a system of 1 to 3 equations, by elimination: `rows` may be wider than `right` is long.
fn solved(rows: &[Vec<f64>], right: &[f64]) -> Vec<f64> {
    let size = right.len();
    let mut rows: Vec<Vec<f64>> = rows.iter().zip(right).map(|(row, right)| [&row[..size], &[*right]].concat()).collect();
    for pivot in 0..size {
        let (above, below) = rows.split_at_mut(pivot + 1);
        let from = &above[pivot];
        for row in below {
            let factor = row[pivot] / from[pivot];
            row.iter_mut().zip(from).skip(pivot).for_each(|(entry, from)| *entry -= factor * from);
        }
    }
    let mut solution = vec![0.0; size];
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|column| rows[row][column] * solution[column]).sum();
        solution[row] = (rows[row][size] - known) / rows[row][row];
    }
    solution
}
