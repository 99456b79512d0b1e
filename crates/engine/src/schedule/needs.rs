//! What a checkpoint's schedule may ask for, sampler by sampler: a key that the job's sampler does not read says nothing.

use super::config::{BetaSchedule, PredictionType, ScheduleConfig};
use super::scheduler::{Sampler, SigmaSpacing};
use super::spacing::Spacing;
use super::{Plan, ScheduleError};

/// The noise levels of a job: what its scheduler's name asks for, else what the checkpoint does.
pub(super) fn spacing(plan: &Plan<'_>, config: &ScheduleConfig) -> Result<Spacing, ScheduleError> {
    let sampler = plan.scheduler.sampler;
    if let Some(spacing) = plan.scheduler.spacing {
        return Ok(Spacing::Spaced(spacing));
    }
    if !sampler.takes_spacings() {
        return Ok(Spacing::Trained);
    }
    let asked = [
        (config.use_karras_sigmas, SigmaSpacing::Karras),
        (config.use_exponential_sigmas, SigmaSpacing::Exponential),
        (config.use_beta_sigmas, SigmaSpacing::Beta),
    ];
    let mut asked = asked.into_iter().filter(|(asked, _)| *asked == Some(true)).map(|(_, spacing)| spacing);
    let lu = config.use_lu_lambdas == Some(true) && solves_in_steps(sampler);
    match (asked.next(), asked.next()) {
        (Some(_), Some(_)) => Err(ScheduleError::Setting {
            scheduler: sampler.as_str(),
            key: "use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas",
            found: "true more than once".into(),
            supported: "one of them, or a scheduler that is named with -karras, -exponential or -beta",
        }),
        (Some(SigmaSpacing::Karras), None) => Ok(Spacing::Spaced(SigmaSpacing::Karras)),
        _ if lu => Ok(Spacing::Lu),
        (Some(spacing), None) => Ok(Spacing::Spaced(spacing)),
        (None, _) => Ok(Spacing::Trained),
    }
}

fn solves_in_steps(sampler: Sampler) -> bool {
    matches!(sampler, Sampler::DpmSolverPlusPlus | Sampler::DpmSolverPlusPlusSde)
}

/// # Errors
/// [`ScheduleError::Setting`] with the first key that the sampler needs another value of.
pub(super) fn check(plan: &Plan<'_>, config: &ScheduleConfig) -> Result<(), ScheduleError> {
    let sampler = plan.scheduler.sampler;
    let singlestep = sampler == Sampler::DpmSolverPlusPlusSinglestep;
    let dpm = solves_in_steps(sampler) || singlestep;
    let unipc = sampler == Sampler::UniPc;
    let euler = sampler == Sampler::Euler;
    let solver = dpm || unipc || sampler == Sampler::Deis;
    let text = |value: &Option<String>, known: &[&str]| match value.as_deref() {
        Some(value) if !known.contains(&value) => Some(format!("{value:?}")),
        _ => None,
    };
    let flag = |value: Option<bool>, wrong: bool| (value == Some(wrong)).then(|| wrong.to_string());
    let order = config.solver_order.filter(|order| !(1..=3).contains(order)).map(|order| order.to_string());
    let types = ["midpoint", "heun", "bh1", "bh2", "logrho"];
    let variance = ["fixed_small", "fixed_small_log", "fixed_large"];
    let learned = config.variance_type.clone().filter(|name| name.starts_with("learned")).map(|name| format!("{name:?}"));
    let continuous =
        (config.prediction_type == PredictionType::VPrediction).then(|| text(&config.timestep_type, &["discrete"]));
    let of_image = (config.prediction_type == PredictionType::Sample).then(|| "\"sample\"".to_owned());
    let another_solver = config.solver_p.map(|_| "a scheduler of its own".to_owned());
    let rows = [
        (!predicts_images(sampler), "prediction_type", of_image, "epsilon, v_prediction"),
        (true, "beta_schedule", betas_of_others(sampler, config), "linear, scaled_linear, squaredcos_cap_v2"),
        (solver, "solver_order", order, "1, 2, 3"),
        (solver, "solver_type", text(&config.solver_type, &types), "midpoint, heun, bh1, bh2, logrho"),
        (solver, "use_flow_sigmas", flag(config.use_flow_sigmas, true), "false"),
        (unipc, "use_dynamic_shifting", flag(config.use_dynamic_shifting, true), "false"),
        (unipc, "predict_x0", flag(config.predict_x0, false), "true"),
        (unipc, "solver_p", another_solver, "null"),
        (dpm, "variance_type", learned, "null, fixed_small"),
        (
            sampler == Sampler::Ddpm,
            "variance_type",
            text(&config.variance_type, &variance),
            "fixed_small, fixed_small_log, fixed_large",
        ),
        (euler, "interpolation_type", text(&config.interpolation_type, &["linear", "log_linear"]), "linear, log_linear"),
        (euler, "timestep_type", continuous.flatten(), "discrete, for a model of v_prediction"),
    ];
    let wrong = rows.into_iter().find_map(|(read, key, found, supported)| {
        let found = found.filter(|_| read)?;
        Some(ScheduleError::Setting { scheduler: sampler.as_str(), key, found, supported })
    });
    wrong.map_or(Ok(()), Err)
}

/// Whether diffusers' class takes a model that predicts the image.
fn predicts_images(sampler: Sampler) -> bool {
    use Sampler::{Dpm2, Dpm2Ancestral, EulerAncestral, Pndm};
    !matches!(sampler, EulerAncestral | Dpm2 | Dpm2Ancestral | Pndm)
}

/// Betas that diffusers has for other samplers alone.
fn betas_of_others(sampler: Sampler, config: &ScheduleConfig) -> Option<String> {
    let name = match (config.beta_schedule?, sampler) {
        (BetaSchedule::Exp, Sampler::Heun)
        | (BetaSchedule::Laplace | BetaSchedule::Sigmoid, Sampler::Ddpm)
        | (BetaSchedule::Linear | BetaSchedule::ScaledLinear | BetaSchedule::SquaredcosCapV2, _) => return None,
        (BetaSchedule::Exp, _) => "\"exp\"",
        (BetaSchedule::Laplace, _) => "\"laplace\"",
        (BetaSchedule::Sigmoid, _) => "\"sigmoid\"",
    };
    Some(name.to_owned())
}

/// What a job may say itself: each sampler takes its own.
pub(super) fn check_plan(plan: &Plan<'_>, spacing: Spacing, trained: usize) -> Result<(), ScheduleError> {
    let sampler = plan.scheduler.sampler;
    let scheduler = sampler.as_str();
    if plan.timesteps.is_some() && spacing != Spacing::Trained {
        return Err(ScheduleError::ListedAndSpaced { scheduler });
    }
    match plan.timesteps.and_then(|timesteps| timesteps.iter().find(|timestep| **timestep as usize >= trained)) {
        Some(timestep) => Err(ScheduleError::UntrainedTimestep { timestep: *timestep, trained }),
        None => Ok(()),
    }
}
