//! Every schedule's table and every one of its steps.

use atelier::engine::schedule::Schedule;
use atelier::engine::schedule::config::ScheduleConfig;
use atelier::job::task::Scheduler;
use candle_core::{IndexOp, Tensor};
use serde::Deserialize;

use super::{Reference, SCHEDULE, Stage, fixtures};

#[derive(Deserialize)]
struct Case {
    key: String,
    scheduler: Scheduler,
    steps: u32,
    config: ScheduleConfig,
}

#[test]
fn parity_of_schedules() {
    let reference = Reference::read("schedules");
    let cases = std::fs::read_to_string(fixtures().join("schedules.json")).expect("the cases");
    let cases: Vec<Case> = serde_json::from_str(&cases).expect("the cases");
    for scheduler in [
        Scheduler::DpmSolverPlusPlus,
        Scheduler::DpmSolverPlusPlusKarras,
        Scheduler::Ddim,
        Scheduler::Euler,
        Scheduler::EulerAncestral,
    ] {
        let mut tables = Stage::new(format!("{scheduler:?}, tables"));
        let mut steps = Stage::new(format!("{scheduler:?}, steps"));
        for case in cases.iter().filter(|case| case.scheduler == scheduler) {
            let schedule = Schedule::new(scheduler, case.steps, &case.config);
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
    // diffusers' DDIM keeps none.
    if case.scheduler != Scheduler::Ddim {
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
    let mut denoised = None;
    for (index, step) in schedule.steps.iter().enumerate() {
        let row = |tensor: &Tensor| tensor.i(index).expect("a step's row");
        let expected = row(states);
        let key = format!("{}/{index}", case.key);
        stage.compare(&key, &(&latents * step.input_scale).expect("input"), &expected.i(0).expect("input"));
        let stepped = step.advance(&latents, &row(outputs), denoised.as_ref(), Some(&row(noise))).expect("a step");
        (latents, denoised) = (stepped.latents, Some(stepped.denoised));
        stage.compare(&key, &latents, &expected.i(1).expect("latents"));
    }
}
