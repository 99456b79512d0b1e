//! DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095), as diffusers' `DPMSolverMultistepScheduler` counts it.

use super::config::{BetaSchedule, FinalSigma, ScheduleConfig, TimestepSpacing};
use super::training::{TrainingSchedule, karras_sigmas, linspace};
use super::{Next, Schedule, Step, denoised};

/// With fewer steps `lower_order_final` makes the last one of first order.
const FEW_STEPS: usize = 15;

pub(super) fn schedule(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize, karras: bool) -> Schedule {
    let (timesteps, mut sigmas) = if karras {
        let sigmas = karras_sigmas(training.sigma_max(), training.sigma_min(), steps);
        let whole = |timestep: f64| match config.beta_schedule {
            BetaSchedule::SquaredcosCapV2 => timestep.trunc(),
            _ => timestep.round_ties_even(),
        };
        (sigmas.iter().map(|sigma| whole(training.timestep_of(*sigma))).collect(), sigmas)
    } else {
        let timesteps = timesteps(training, config, steps);
        let sigmas = timesteps.iter().map(|timestep| training.sigma_at(*timestep)).collect();
        (timesteps, sigmas)
    };
    sigmas.push(match config.final_sigmas_type {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => training.sigma_min(),
    });
    let sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
    let first_order_at_end = config.euler_at_final.unwrap_or(false)
        || (config.lower_order_final.unwrap_or(true) && steps < FEW_STEPS)
        || config.final_sigmas_type == FinalSigma::Zero;
    let row = |index: usize| {
        let last = index + 1 == timesteps.len();
        let first_order = index == 0 || config.solver_order == Some(1) || (last && first_order_at_end);
        let (alpha, sigma) = alpha_sigma(sigmas[index]);
        Step {
            timestep: timesteps[index],
            input_scale: 1.0,
            denoised: denoised(config.prediction_type, alpha, sigma),
            next: update(&sigmas, index, first_order),
        }
    };
    let steps = (0..timesteps.len()).map(row).collect();
    Schedule { init_noise_sigma: 1.0, steps, sigmas }
}

/// Equation (4.1) of the paper, and (5.3), the midpoint form of second order.
fn update(sigmas: &[f64], index: usize, first_order: bool) -> Next {
    let (alpha_next, sigma_next) = alpha_sigma(sigmas[index + 1]);
    let (_, sigma) = alpha_sigma(sigmas[index]);
    let h = lambda(sigmas[index + 1]) - lambda(sigmas[index]);
    let gain = -alpha_next * (-h).exp_m1();
    let next = Next { latents: sigma_next / sigma, denoised: gain, ..Next::default() };
    if first_order {
        return next;
    }
    let h_before = lambda(sigmas[index]) - lambda(sigmas[index - 1]);
    let correction = 0.5 * gain * h / h_before;
    Next { denoised: gain + correction, previous_denoised: -correction, ..next }
}

/// Signal and noise of variance 1 together, from noise over signal.
fn alpha_sigma(ratio: f64) -> (f64, f64) {
    let alpha = (ratio * ratio + 1.0).sqrt().recip();
    (alpha, ratio * alpha)
}

/// Half the log signal-to-noise ratio.
fn lambda(ratio: f64) -> f64 {
    -ratio.ln()
}

/// One more than `steps` are laid out, so that the last is not the picture itself.
fn timesteps(training: &TrainingSchedule, config: &ScheduleConfig, steps: usize) -> Vec<f64> {
    let lowest = config.lambda_min_clipped.unwrap_or(f64::NEG_INFINITY);
    let clipped = (0..training.len()).filter(|timestep| training.lambda_at(*timestep) < lowest).count();
    let count = training.len() - clipped;
    match config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace) {
        TimestepSpacing::Linspace => {
            linspace(0.0, count as f64 - 1.0, steps + 1)[1..].iter().rev().map(|t| t.round_ties_even()).collect()
        }
        TimestepSpacing::Leading => {
            let stride = count / (steps + 1);
            (1..=steps).rev().map(|index| (index * stride + config.steps_offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = training.len() as f64 / steps as f64;
            (0..(count as f64 / stride).ceil() as usize)
                .map(|index| (count as f64 - index as f64 * stride).round_ties_even() - 1.0)
                .collect()
        }
    }
}
