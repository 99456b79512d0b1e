//! Pseudo numerical methods (Liu et al. 2022, arXiv 2202.09778), as diffusers' `PNDMScheduler` counts them: three Runge-Kutta steps of four calls,
//! or none (`skip_prk_steps`), and then linear multistep ones. What a step predicts is the UNet's own output.

use super::config::{ScheduleConfig, TimestepSpacing};
use super::levels::whole_timesteps;
use super::step::{Denoised, Next, Step};
use super::training::TrainingSchedule;
use super::{Input, Schedule, ScheduleError};

/// Calls of the UNet in a Runge-Kutta step.
const CALLS: usize = 4;

pub(super) fn schedule(input: &Input<'_>) -> Result<Schedule, ScheduleError> {
    let Input { training, config, steps, first, .. } = *input;
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
    let evenly = whole_timesteps(training, config, steps, spacing);
    let stride = (training.len() / steps) as i64;
    let runge_kutta = if config.skip_prk_steps.unwrap_or(false) { vec![] } else { runge_kutta_timesteps(&evenly, stride)? };
    // The second of the linear multistep steps is done twice, where no Runge-Kutta steps went before it.
    let linear: Vec<i64> = match runge_kutta.len() {
        0 => evenly.iter().take(2).chain(evenly.iter().skip(1)).copied().collect(),
        _ => evenly[CALLS - 1..].to_vec(),
    };
    let timesteps: Vec<i64> = runge_kutta.iter().copied().chain(linear).collect();
    // Calls are counted from where the job starts, not from the first timestep.
    let rows = (first..timesteps.len()).map(|index| {
        let call = index - first;
        let timestep = timesteps[index];
        if call < runge_kutta.len() {
            let from = runge_kutta[call / CALLS * CALLS];
            let to = if call.is_multiple_of(2) { timestep - stride / 2 } else { timestep };
            return transfer(input, timestep, (from, to), &runge_kutta_blend(call));
        }
        let (from, to) = match call {
            1 if runge_kutta.is_empty() => (timestep + stride, timestep),
            _ => (timestep, timestep - stride),
        };
        transfer(input, timestep, (from, to), &linear_blend(call, runge_kutta.len()))
    });
    let rows = rows.collect();
    let sigmas = timesteps.iter().map(|timestep| training.ratio(*timestep)).chain([0.0]).collect();
    Ok(Schedule::of_unit_variance(sigmas, rows))
}

/// Three steps from each of the first four timesteps to the next, over the middle between them; formula (13) of the paper.
fn runge_kutta_timesteps(evenly: &[i64], stride: i64) -> Result<Vec<i64>, ScheduleError> {
    let Some(ends) = evenly.get(..CALLS) else {
        return Err(ScheduleError::TooFewSteps { least: CALLS, steps: evenly.len() });
    };
    let half = stride / 2;
    Ok(ends.windows(2).flat_map(|ends| [ends[0], ends[1] + half, ends[1] + half, ends[1]]).collect())
}

/// Weights of the outputs of a step, and what its latents come from.
struct Blend {
    output: f64,
    /// Of the calls before, the last one's first.
    before: Vec<f64>,
    /// The step goes out from the latents that an earlier call kept.
    from_kept: bool,
    keeps: bool,
}

/// The first three calls of a Runge-Kutta step only look for the outputs that the fourth one blends.
fn runge_kutta_blend(call: usize) -> Blend {
    // What diffusers accumulates: the first call adds a sixth of its output and goes on with all of it.
    let (output, before) = match call % CALLS {
        3 => (1.0 / 6.0, vec![1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0]),
        _ => (1.0, vec![]),
    };
    let first = call.is_multiple_of(CALLS);
    Blend { output, before, from_kept: !first, keeps: first }
}

/// Adams and Bashforth's weights of up to four outputs.
fn linear_blend(call: usize, runge_kutta: usize) -> Blend {
    let plain = |output: f64, before: Vec<f64>| Blend { output, before, from_kept: false, keeps: call == 0 };
    if runge_kutta > 0 {
        // The outputs before are those of the first call of every Runge-Kutta step.
        let linear = call - runge_kutta;
        let mut before = vec![0.0; runge_kutta + linear];
        for (back, weight) in [-59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0].into_iter().enumerate() {
            let place = if back < linear { back } else { linear + CALLS * (back - linear + 1) - 1 };
            before[place] = weight;
        }
        return plain(55.0 / 24.0, before);
    }
    // The second call repeats the first step, and counts for no later one.
    match call {
        0 => plain(1.0, vec![]),
        1 => Blend { output: 0.5, before: vec![0.5], from_kept: true, keeps: false },
        2 => plain(1.5, vec![0.0, -0.5]),
        3 => plain(23.0 / 12.0, vec![-16.0 / 12.0, 0.0, 5.0 / 12.0]),
        4 => plain(55.0 / 24.0, vec![-59.0 / 24.0, 37.0 / 24.0, 0.0, -9.0 / 24.0]),
        _ => plain(55.0 / 24.0, vec![-59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0]),
    }
}

/// Formula (9) of the paper, from one timestep to another.
fn transfer(input: &Input<'_>, timestep: i64, (from, to): (i64, i64), blend: &Blend) -> Step {
    let Input { training, config, .. } = *input;
    let alpha = training.alpha_cumprod(from);
    let alpha_next = alpha_after(training, config, to);
    let divisor = alpha * (1.0 - alpha_next).sqrt() + (alpha * (1.0 - alpha) * alpha_next).sqrt();
    let noise = -(alpha_next - alpha) / divisor;
    let predicted = Denoised::noise(config.prediction_type, alpha.sqrt(), (1.0 - alpha).sqrt());
    let of_output = noise * predicted.output;
    let latents = (alpha_next / alpha).sqrt() + noise * predicted.latents;
    Step {
        timestep: timestep as f64,
        input_scale: 1.0,
        denoised: Denoised::linear(0.0, 1.0),
        corrected: None,
        next: Next {
            latents: if blend.from_kept { 0.0 } else { latents },
            kept_latents: if blend.from_kept { latents } else { 0.0 },
            output: of_output * blend.output,
            before: blend.before.iter().map(|weight| of_output * weight).collect(),
            ..Next::default()
        },
        keeps_latents: blend.keeps,
    }
}

/// Before the first training timestep there is what the checkpoint takes for the image.
fn alpha_after(training: &TrainingSchedule, config: &ScheduleConfig, timestep: i64) -> f64 {
    if timestep < 0 && config.set_alpha_to_one.unwrap_or(false) { 1.0 } else { training.alpha_cumprod(timestep) }
}
