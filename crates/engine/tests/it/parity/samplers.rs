//! Every sampler's every step over many settings, and images of jobs as each of diffusers' pipelines makes them (`tests/oracle/samplers.py`).

use std::collections::BTreeMap;

use atelier_engine::schedule::config::ScheduleConfig;
use atelier_engine::schedule::scheduler::Scheduler;
use atelier_engine::schedule::step::History;
use atelier_engine::schedule::{Plan, Schedule};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{Engine, GenerateRequest, InitImage, Sampling, Watch};
use candle_core::{DType, IndexOp, Tensor};
use image::{GrayImage, RgbImage};
use serde::Deserialize;
use serde_json::Value;

use super::images::request;
use super::names::named_scheduler;
use super::stages::largest_step;
use super::{PIXEL, Reference, RelativeError, SCHEDULE, Stage, fixtures};
use crate::device;
use crate::engine::copy_directory;

const SIDE_PX: u32 = 64;

/// A case of either file; what is absent is the sampler's own.
#[derive(Deserialize)]
struct Case {
    key: String,
    #[serde(deserialize_with = "named_scheduler")]
    scheduler: Scheduler,
    steps: u32,
    strength: Option<f64>,
    timesteps: Option<Vec<u32>>,
    sigmas: Option<Vec<f64>>,
    eta: Option<f64>,
    config: Option<ScheduleConfig>,
    /// How far diffusers' single precision is from its double precision, where that is more than [`SCHEDULE`].
    single: Option<f64>,
    /// The same, from double precision that made the tables as well; the reference then has both, the latter under `KEY/all`.
    single_of_all: Option<f64>,
    file: Option<String>,
    kind: Option<String>,
    guidance_scale: Option<f64>,
    guidance_rescale: Option<f64>,
    clip_skip: Option<u32>,
    seed: Option<u64>,
}

#[derive(Deserialize)]
struct Jobs {
    files: BTreeMap<String, Value>,
    jobs: Vec<Case>,
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let text = std::fs::read_to_string(fixtures().join(name)).expect("the cases");
    serde_json::from_str(&text).expect("the cases")
}

#[test]
fn parity_of_every_samplers_steps() {
    let reference = Reference::read("steps");
    let given = Reference::read("samplers");
    let mut stages: BTreeMap<String, Stage> = BTreeMap::new();
    for case in read::<Vec<Case>>("steps.json") {
        let schedule = planned(&case);
        let name = format!("{}, steps", case.scheduler.sampler.as_str());
        let stage = stages.entry(name.clone()).or_insert_with(|| Stage::new(name));
        compare_steps(stage, &case.key, &schedule, &reference, &given);
    }
    assert_eq!(stages.len(), 16);
    for stage in stages.into_values() {
        stage.finish(SCHEDULE);
    }
}

/// 480 rows of settings as they came together by chance, without those that diffusers itself does not run.
#[test]
fn parity_of_steps_of_settings_by_chance() {
    let reference = Reference::read("steps_by_chance");
    let given = Reference::read("samplers");
    let mut all = Stage::new("steps of settings by chance");
    for case in read::<Vec<Case>>("steps_by_chance.json") {
        let of_allowed = |key: &str, single: Option<f64>| {
            let mut stage = Stage::new(key);
            compare_steps(&mut stage, key, &planned(&case), &reference, &given);
            stage.worst / single.unwrap_or_default().max(SCHEDULE.0)
        };
        let mut error = of_allowed(&case.key, case.single);
        if case.single_of_all.is_some() {
            error = error.min(of_allowed(&format!("{}/all", case.key), case.single_of_all));
        }
        all.note(&case.key, error);
    }
    assert!(all.cases > 400, "{}", all.cases);
    all.finish(RelativeError(1.0));
}

fn planned(case: &Case) -> Schedule {
    let plan = Plan {
        strength: case.strength,
        eta: case.eta.unwrap_or_default(),
        timesteps: case.timesteps.as_deref(),
        sigmas: case.sigmas.as_deref(),
        ..Plan::new(case.scheduler, case.steps)
    };
    let config = case.config.as_ref().expect("a config");
    Schedule::planned(&plan, config).unwrap_or_else(|error| panic!("{}: {error}", case.key))
}

fn compare_steps(stage: &mut Stage, key: &str, schedule: &Schedule, reference: &Reference, given: &Reference) {
    let tensor = |values: Vec<f64>| Tensor::new(values, &device()).expect("values");
    let timesteps = tensor(schedule.steps.iter().map(|step| step.timestep).collect());
    stage.compare(&format!("{key}, timesteps"), &timesteps, reference.get(&format!("{key}/timesteps")));
    if let Some(sigmas) = reference.0.get(&format!("{key}/sigmas")) {
        stage.compare(&format!("{key}, sigmas"), &tensor(schedule.sigmas.clone()), sigmas);
    }
    let states = reference.get(&format!("{key}/states"));
    // Where the oracle's own last step is no number, it has none.
    let count = states.dim(0).expect("steps");
    assert!(count + 1 >= schedule.steps.len(), "{key}");
    let outputs = given.get("schedule/outputs");
    let noise = given.get("schedule/noise");
    let mut latents = (given.get("schedule/latents") * schedule.init_noise_sigma).expect("latents");
    let mut history = History::default();
    for (index, step) in schedule.steps.iter().take(count).enumerate() {
        let row = |tensor: &Tensor| tensor.i(index).expect("a step's row");
        let expected = row(states);
        stage.compare(key, &(&latents * step.input_scale).expect("input"), &expected.i(0).expect("input"));
        let stepped = step.advance(&latents, &row(outputs), &history, Some(&row(noise))).expect("a step");
        (latents, history) = (stepped.latents, stepped.history);
        stage.compare(&format!("{key}, {index}"), &latents, &expected.i(1).expect("latents"));
    }
}

#[test]
fn parity_of_jobs_through_each_pipeline() {
    let reference = Reference::read("jobs");
    let Jobs { files, jobs } = read("jobs.json");
    for (name, config) in &files {
        let directory = tempfile::tempdir().expect("a directory");
        copy_directory(&fixtures().join("sd15"), directory.path());
        std::fs::write(directory.path().join("scheduler/scheduler_config.json"), config.to_string()).expect("writes");
        let mut engine = StableDiffusion::load(&Settings::new(directory.path(), DType::F32, device())).expect("loads");
        let mut stage = Stage::new(format!("jobs, {name}, 8 bit"));
        for case in jobs.iter().filter(|case| case.file.as_deref() == Some(name)) {
            let made = engine.generate(&job(case, &reference), &Watch::new(|_| ())).expect("an image");
            stage.note(&case.key, f64::from(largest_step(&every_second(&made[0].rgb), &bytes(reference.get(&case.key)))));
        }
        stage.finish(RelativeError(f64::from(PIXEL)));
    }
}

fn job(case: &Case, reference: &Reference) -> GenerateRequest {
    let mut request = request(case.scheduler, case.guidance_scale.unwrap_or(5.0), 1);
    (request.width_px, request.height_px) = (SIDE_PX, SIDE_PX);
    request.steps = case.steps;
    request.seeds = vec![case.seed.unwrap_or(42)];
    request.sampling = Sampling {
        timesteps: case.timesteps.clone(),
        sigmas: case.sigmas.clone(),
        eta: case.eta.unwrap_or_default(),
        guidance_rescale: case.guidance_rescale.unwrap_or_default(),
        clip_skip: case.clip_skip.unwrap_or_default(),
        ..Sampling::default()
    };
    if let Some(strength) = case.strength {
        let masked = case.kind.as_deref() == Some("inpaint");
        request.strength = strength;
        let rgb = RgbImage::from_raw(SIDE_PX, SIDE_PX, bytes(reference.get("image"))).expect("an image");
        let mask = GrayImage::from_raw(SIDE_PX, SIDE_PX, bytes(reference.get("mask"))).expect("a mask");
        request.start = Some(InitImage { rgb, mask: masked.then_some(mask) });
    }
    request
}

/// Every second pixel of every second row, as the reference has them.
fn every_second(rgb: &[u8]) -> Vec<u8> {
    let rows = rgb.chunks_exact(3 * SIDE_PX as usize).step_by(2);
    rows.flat_map(|row| row.chunks_exact(3).step_by(2)).flatten().copied().collect()
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("bytes")
}
