//! Every schedule's table and every one of its steps.

use atelier_engine::schedule::config::ScheduleConfig;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::schedule::step::History;
use atelier_engine::schedule::{Plan, Schedule};
use candle_core::{IndexOp, Tensor};
use serde::Deserialize;

use super::names::{named_scheduler, scheduler};
use super::{Reference, SCHEDULE, Stage, fixtures};

use crate::device;

#[derive(Deserialize)]
struct Case {
    key: String,
    #[serde(deserialize_with = "named_scheduler")]
    scheduler: Scheduler,
    steps: u32,
    config: ScheduleConfig,
}

#[test]
fn parity_of_schedules() {
    let first = [
        Scheduler::plain(Sampler::DpmSolverPlusPlus),
        Scheduler::karras(Sampler::DpmSolverPlusPlus),
        Scheduler::plain(Sampler::Ddim),
        Scheduler::plain(Sampler::Euler),
        Scheduler::plain(Sampler::EulerAncestral),
    ];
    let later = [
        Scheduler::plain(Sampler::DpmSolverPlusPlusSde),
        Scheduler::karras(Sampler::DpmSolverPlusPlusSde),
        Scheduler::plain(Sampler::UniPc),
        Scheduler::karras(Sampler::UniPc),
        Scheduler::karras(Sampler::Euler),
        Scheduler::plain(Sampler::Lcm),
    ];
    compare("schedules", &first);
    compare("samplers", &later);
}

#[test]
fn lcm_refuses_more_steps_than_it_was_distilled_from() {
    let config: ScheduleConfig = serde_json::from_str(r#"{"original_inference_steps": 40}"#).expect("a config");
    let error = Schedule::new(Scheduler::plain(Sampler::Lcm), 41, &config).expect_err("41 of 40");
    assert_eq!(error.to_string(), "must be at most 40, which this model was distilled from with scheduler lcm, got 41");
}

fn compare(file: &str, schedulers: &[Scheduler]) {
    let reference = Reference::read(file);
    let cases = std::fs::read_to_string(fixtures().join(format!("{file}.json"))).expect("the cases");
    let cases: Vec<Case> = serde_json::from_str(&cases).expect("the cases");
    assert!(cases.iter().all(|case| schedulers.contains(&case.scheduler)), "{file}");
    for scheduler in schedulers.iter().copied() {
        let mut tables = Stage::new(format!("{scheduler:?}, tables"));
        let mut steps = Stage::new(format!("{scheduler:?}, steps"));
        for case in cases.iter().filter(|case| case.scheduler == scheduler) {
            let schedule = Schedule::new(scheduler, case.steps, &case.config).expect("a schedule");
            compare_table(&mut tables, case, &schedule, &reference);
            compare_steps(&mut steps, case, &schedule, &reference);
        }
        tables.finish(SCHEDULE);
        steps.finish(SCHEDULE);
    }
}

fn compare_table(stage: &mut Stage, case: &Case, schedule: &Schedule, reference: &Reference) {
    let timesteps: Vec<f32> = schedule.steps.iter().map(|step| step.timestep as f32).collect();
    let timesteps = Tensor::new(timesteps, &device()).expect("timesteps");
    stage.compare(&format!("{}/timesteps", case.key), &timesteps, reference.get(&format!("{}/timesteps", case.key)));
    // diffusers' DDIM and LCM keep none.
    if !matches!(case.scheduler.sampler, Sampler::Ddim | Sampler::Lcm) {
        let sigmas: Vec<f32> = schedule.sigmas.iter().map(|sigma| *sigma as f32).collect();
        let sigmas = Tensor::new(sigmas, &device()).expect("sigmas");
        stage.compare(&format!("{}/sigmas", case.key), &sigmas, reference.get(&format!("{}/sigmas", case.key)));
    }
}

/// The same latents, predictions and noise as the oracle had; each step continues from our own last one.
fn compare_steps(stage: &mut Stage, case: &Case, schedule: &Schedule, reference: &Reference) {
    let states = reference.get(&format!("{}/states", case.key));
    let outputs = reference.get("schedule/outputs");
    let noise = reference.get("schedule/noise");
    let mut latents = (reference.get("schedule/latents") * schedule.init_noise_sigma).expect("latents");
    let mut history = History::default();
    // Where the oracle's own last step is no number, it has none.
    let count = states.dim(0).expect("steps");
    assert!(count + 1 >= schedule.steps.len(), "{}", case.key);
    for (index, step) in schedule.steps.iter().take(count).enumerate() {
        let row = |tensor: &Tensor| tensor.i(index).expect("a step's row");
        let expected = row(states);
        let key = format!("{}/{index}", case.key);
        stage.compare(&key, &(&latents * step.input_scale).expect("input"), &expected.i(0).expect("input"));
        let stepped = step.advance(&latents, &row(outputs), &history, Some(&row(noise))).expect("a step");
        (latents, history) = (stepped.latents, stepped.history);
        stage.compare(&key, &latents, &expected.i(1).expect("latents"));
    }
}

#[test]
fn a_setting_is_refused_only_by_the_schedulers_that_read_it() {
    let cases = [
        (r#"{"beta_schedule": "sigmoid"}"#, "ddim", "has beta_schedule \"sigmoid\"; supported: linear, scaled_linear"),
        (r#"{"beta_schedule": "laplace"}"#, "heun", "has beta_schedule \"laplace\""),
        (r#"{"beta_schedule": "exp"}"#, "ddpm", "has beta_schedule \"exp\""),
        (r#"{"prediction_type": "sample"}"#, "dpm2", "has prediction_type \"sample\"; supported: epsilon, v_prediction"),
        (r#"{"prediction_type": "sample"}"#, "dpm2_a-karras", "has prediction_type \"sample\""),
        (r#"{"solver_order": 4}"#, "unipc", "has solver_order 4; supported: 1, 2, 3"),
        (r#"{"solver_type": "rk4"}"#, "dpmsolver++", "has solver_type \"rk4\""),
        (r#"{"use_flow_sigmas": true}"#, "deis", "has use_flow_sigmas true"),
        (r#"{"predict_x0": false}"#, "unipc-karras", "has predict_x0 false; supported: true"),
        (r#"{"solver_p": {"order": 1}}"#, "unipc", "has solver_p"),
        (r#"{"variance_type": "learned_range"}"#, "ddpm", "has variance_type \"learned_range\""),
        (r#"{"interpolation_type": "cubic"}"#, "euler", "has interpolation_type \"cubic\""),
        (r#"{"timestep_type": "continuous", "prediction_type": "v_prediction"}"#, "euler", "has timestep_type"),
        (r#"{"use_karras_sigmas": true, "use_beta_sigmas": true}"#, "heun", "true more than once"),
        (r#"{"original_inference_steps": 0}"#, "tcd", "has original_inference_steps 0"),
    ];
    for (config, name, problem) in cases {
        let config: ScheduleConfig = serde_json::from_str(config).expect("a config");
        let error = Schedule::new(scheduler(name).expect(name), 5, &config).expect_err(name);
        assert!(error.to_string().contains(problem), "{error}");
        assert_eq!(error.field(), "scheduler");
        // Neither reads any of the other keys.
        let read_by_all = problem.contains("beta_schedule") || problem.contains("prediction_type");
        for name in ["euler_a", "pndm"].into_iter().filter(|_| !read_by_all) {
            Schedule::new(scheduler(name).expect(name), 5, &config).expect(name);
        }
    }
}

#[test]
fn algorithms_that_another_scheduler_has_are_no_reason_to_refuse() {
    let algorithms = ["deis", "dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"];
    let types = ["midpoint", "heun", "bh1", "bh2", "logrho"];
    for (algorithm, solver) in algorithms.iter().zip(types) {
        let config = format!(r#"{{"algorithm_type": "{algorithm}", "solver_type": "{solver}"}}"#);
        let config: ScheduleConfig = serde_json::from_str(&config).expect("a config");
        for name in ["dpmsolver++", "dpmsolver++-sde", "dpmsolver++-singlestep", "deis", "unipc", "euler", "lms"] {
            Schedule::new(scheduler(name).expect(name), 7, &config).expect(name);
        }
    }
}

#[test]
fn no_scheduler_panics_at_any_number_of_steps_or_start() {
    let configs = [
        "{}",
        r#"{"steps_offset": 1, "skip_prk_steps": true, "timestep_spacing": "trailing", "solver_order": 3}"#,
        r#"{"steps_offset": 1, "timestep_spacing": "linspace", "solver_order": 3, "lower_order_final": false}"#,
    ];
    let names = "dpmsolver++ dpmsolver++-sde-beta dpmsolver++-singlestep deis-karras unipc-exponential euler heun dpm2 dpm2_a lms euler_a \
                 pndm ddim ddpm lcm tcd";
    for config in configs {
        let config: ScheduleConfig = serde_json::from_str(config).expect("a config");
        for name in names.split_whitespace() {
            let scheduler = scheduler(name).expect(name);
            for steps in (1..=200).step_by(7).chain([2, 3, 4, 61, 103, 200]) {
                for strength in [None, Some(0.999), Some(0.51), Some(1.0 / f64::from(steps))] {
                    let plan = Plan { strength, ..Plan::new(scheduler, steps) };
                    if let Ok(schedule) = Schedule::planned(&plan, &config) {
                        let rows = schedule.steps.len();
                        assert!(rows > 0 && schedule.sigmas.len() >= rows, "{name}, {steps}, {strength:?}");
                    }
                }
            }
        }
    }
}
