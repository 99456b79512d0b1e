//! Every schedule's table and every one of its steps.

use atelier_engine::schedule::config::ScheduleConfig;
use atelier_engine::schedule::scheduler::Scheduler;
use atelier_engine::schedule::{History, Schedule};
use candle_core::{IndexOp, Tensor};
use serde::{Deserialize, Deserializer, de};

use super::{Reference, SCHEDULE, Stage, fixtures};

#[derive(Deserialize)]
struct Case {
    key: String,
    #[serde(deserialize_with = "scheduler")]
    scheduler: Scheduler,
    steps: u32,
    config: ScheduleConfig,
}

/// By the oracle's name, which is a job's too.
fn scheduler<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Scheduler, D::Error> {
    Ok(match String::deserialize(deserializer)?.as_str() {
        "dpmsolver++" => Scheduler::DpmSolverPlusPlus,
        "dpmsolver++-karras" => Scheduler::DpmSolverPlusPlusKarras,
        "dpmsolver++-sde" => Scheduler::DpmSolverPlusPlusSde,
        "dpmsolver++-sde-karras" => Scheduler::DpmSolverPlusPlusSdeKarras,
        "unipc" => Scheduler::UniPc,
        "unipc-karras" => Scheduler::UniPcKarras,
        "ddim" => Scheduler::Ddim,
        "euler" => Scheduler::Euler,
        "euler-karras" => Scheduler::EulerKarras,
        "euler_a" => Scheduler::EulerAncestral,
        "lcm" => Scheduler::Lcm,
        other => return Err(de::Error::custom(format!("the oracle has no scheduler {other}"))),
    })
}

#[test]
fn parity_of_schedules() {
    let first = [
        Scheduler::DpmSolverPlusPlus,
        Scheduler::DpmSolverPlusPlusKarras,
        Scheduler::Ddim,
        Scheduler::Euler,
        Scheduler::EulerAncestral,
    ];
    let later = [
        Scheduler::DpmSolverPlusPlusSde,
        Scheduler::DpmSolverPlusPlusSdeKarras,
        Scheduler::UniPc,
        Scheduler::UniPcKarras,
        Scheduler::EulerKarras,
        Scheduler::Lcm,
    ];
    compare("schedules", &first);
    compare("samplers", &later);
}

#[test]
fn lcm_refuses_more_steps_than_it_was_distilled_from() {
    let config: ScheduleConfig = serde_json::from_str(r#"{"original_inference_steps": 40}"#).expect("a config");
    let error = Schedule::new(Scheduler::Lcm, 41, &config).expect_err("41 of 40");
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
    let timesteps = Tensor::new(timesteps, &candle_core::Device::Cpu).expect("timesteps");
    stage.compare(&format!("{}/timesteps", case.key), &timesteps, reference.get(&format!("{}/timesteps", case.key)));
    // diffusers' DDIM and LCM keep none.
    if !matches!(case.scheduler, Scheduler::Ddim | Scheduler::Lcm) {
        let sigmas: Vec<f32> = schedule.sigmas.iter().map(|sigma| *sigma as f32).collect();
        let sigmas = Tensor::new(sigmas, &candle_core::Device::Cpu).expect("sigmas");
        stage.compare(&format!("{}/sigmas", case.key), &sigmas, reference.get(&format!("{}/sigmas", case.key)));
    }
}

/// The same latents, predictions and noise as the oracle had; each step continues from our own last one.
fn compare_steps(stage: &mut Stage, case: &Case, schedule: &Schedule, reference: &Reference) {
    let states = reference.get(&format!("{}/states", case.key));
    let (outputs, noise) = (reference.get("schedule/outputs"), reference.get("schedule/noise"));
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
