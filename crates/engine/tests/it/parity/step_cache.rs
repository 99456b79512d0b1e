//! Images that step caching gives, against the package `DeepCache` and diffusers' first-block cache (`tests/oracle/step_cache.py`).

use std::path::{Path, PathBuf};

use atelier_engine::flow::family::Family;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::qwen::Variant;
use atelier_engine::qwen::checkpoint::Pipeline;
use atelier_engine::qwen::engine::{self, QwenEngine};
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::sizes::Areas;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::step_cache::StepCache;
use atelier_engine::{
    EditRequest, Engine, EngineError, GenerateRequest, Generated, InitImage, QueuedRequest, Request, Sampling, Watch,
};
use candle_core::{DType, Device};
use serde::Deserialize;

use super::flow;
use super::names::named_scheduler;
use super::qwen_text::image;
use super::stages::largest_step;
use super::{PIXEL, Reference, RelativeError, Stage};
use crate::{device, own_device};

#[derive(Deserialize)]
struct Cases {
    prompt: String,
    negative_prompt: String,
    #[serde(rename = "cases")]
    all: Vec<Case>,
}

#[derive(Clone, Deserialize)]
struct Case {
    key: String,
    model: String,
    interval: Option<u32>,
    threshold: Option<f64>,
    #[serde(default = "euler", deserialize_with = "named_scheduler")]
    scheduler: Scheduler,
    steps: u32,
    #[serde(default)]
    guidance_scale: f64,
    width: u32,
    height: u32,
    seed: u64,
    strength: Option<f64>,
}

fn euler() -> Scheduler {
    Scheduler::plain(Sampler::Euler)
}

impl Case {
    fn step_cache(&self) -> StepCache {
        self.interval.map_or_else(|| StepCache::Threshold(self.threshold.expect("one of them")), StepCache::Interval)
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn cases() -> Cases {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("step_cache.json")).expect("cases")).expect("cases")
}

fn expected() -> Reference {
    Reference::open(&fixtures().join("step_cache.safetensors"))
}

fn request(case: &Case) -> GenerateRequest {
    let Cases { prompt, negative_prompt, .. } = cases();
    GenerateRequest {
        prompt,
        negative_prompt,
        loras: Vec::new(),
        embeddings: Vec::new(),
        controls: Vec::new(),
        image_prompts: Vec::new(),
        start: case.strength.map(|_| InitImage { rgb: image(expected().get("image")), mask: None }),
        strength: case.strength.unwrap_or(1.0),
        steps: case.steps,
        guidance_scale: case.guidance_scale,
        scheduler: case.scheduler,
        sampling: Sampling { step_cache: Some(case.step_cache()), ..Sampling::default() },
        mode: None,
        width_px: case.width,
        height_px: case.height,
        seeds: vec![case.seed],
    }
}

fn edit(case: &Case) -> EditRequest {
    let Cases { prompt, negative_prompt, .. } = cases();
    EditRequest {
        images: vec![image(expected().get("reference"))],
        prompt,
        negative_prompt,
        loras: Vec::new(),
        steps: case.steps,
        guidance_scale: case.guidance_scale,
        mode: Some("base".into()),
        seeds: vec![case.seed],
        width_px: case.width,
        height_px: case.height,
        step_cache: Some(case.step_cache()),
    }
}

fn unet(name: &str, graphs: bool) -> StableDiffusion {
    let directory = fixtures().join(name);
    let settings = Settings { graphs, ..Settings::new(&directory, DType::F32, own_device()) };
    StableDiffusion::load(&settings).expect("the fixture loads")
}

fn generated(engine: &mut impl Engine, request: Request) -> Generated {
    engine.generate_together(&[QueuedRequest { request, watch: Watch::new(|_| ()) }])?.remove(0)
}

fn compare(name: &str, engine: &mut impl Engine, request: impl Fn(&Case) -> Request) {
    let mut stage = Stage::new(format!("step cache, {name}, 8 bit"));
    for case in cases().all.iter().filter(|case| case.model == name) {
        let ours = generated(engine, request(case)).expect("generates");
        let theirs = image(expected().get(&case.key));
        assert_eq!((ours[0].width_px, ours[0].height_px), theirs.dimensions());
        stage.note(&case.key, f64::from(largest_step(&ours[0].rgb, theirs.as_raw())));
    }
    assert!(stage.cases > 1, "{name}");
    stage.finish(RelativeError(f64::from(PIXEL)));
}

#[test]
fn parity_of_deep_cache() {
    for name in ["sd/sd15", "sdxl"] {
        compare(name, &mut unet(name, true), |case| Request::Generate(request(case)));
    }
}

fn compare_flow<F: Family>(name: &str) {
    let mut engine = flow::load::<F>(&flow::directory(name), flow::SETTINGS).expect("the fixture loads");
    compare(name, &mut engine, |case| Request::Generate(request(case)));
}

#[test]
fn parity_of_the_first_block_cache_of_flows() {
    compare_flow::<Flux>("flux");
    compare_flow::<ZImage>("z-image");
}

fn edits() -> QwenEngine {
    let settings = engine::Settings {
        pipeline: Pipeline::Edit,
        modes: vec![("base".to_owned(), Variant::default())],
        areas: Areas { reference_px: 112 * 112, condition_px: 168 * 168 },
        memory_budget: None,
        graphs: true,
        forget_between_jobs: false,
    };
    let directory = fixtures().join("qwen-family/edit");
    QwenEngine::load(&directory, settings, Precision::of(&Device::Cpu), device()).expect("the fixture loads")
}

#[test]
fn parity_of_the_first_block_cache_of_edits() {
    compare("qwen-family/edit", &mut edits(), |case| Request::Edit(edit(case)));
}

/// Several images of one job, two jobs in one batch and one that leaves it: each is what it is alone, with graphs or without.
#[test]
fn a_cached_batch_is_as_alone() {
    let case = cases().all.into_iter().find(|case| case.model == "sd/sd15").expect("a case");
    let one = GenerateRequest { seeds: vec![5, 6], ..request(&case) };
    let other = GenerateRequest { prompt: "a pink dress".into(), seeds: vec![7], ..request(&case) };
    let mut plain = unet("sd/sd15", false);
    let alone = [&one, &other].map(|request| generated(&mut plain, Request::Generate(request.clone())).expect("generates"));
    let mut engine = unet("sd/sd15", true);
    let queued = |request: &GenerateRequest, watch| QueuedRequest { request: Request::Generate(request.clone()), watch };
    let both = [queued(&one, Watch::new(|_| ())), queued(&other, Watch::new(|_| ()))];
    let both = engine.generate_together(&both).expect("generates");
    assert!(both.into_iter().map(|images| images.expect("generates")).eq(alone.clone()));
    // After the fifth of ten steps, between two complete looks, it leaves.
    let leaves = Watch::new(|_| ());
    let at_step = Watch::new({
        let leaves = leaves.clone();
        move |progress| {
            if progress.step == 5 {
                leaves.cancel();
            }
        }
    });
    let both = [queued(&one, leaves), queued(&other, at_step)];
    let mut both = engine.generate_together(&both).expect("generates");
    assert_eq!(both.pop().expect("two").expect("stays"), alone[1]);
    assert!(matches!(both.pop().expect("two"), Err(EngineError::Cancelled)));
    let image = generated(&mut engine, Request::Generate(GenerateRequest { seeds: vec![6], ..one })).expect("generates");
    assert_eq!(image[0], alone[0][1], "an image of several is what it is alone");
}

/// Where memory is short the rows go one by one, and take over the same.
#[test]
fn a_cached_image_is_the_same_in_pieces() {
    let case = cases().all.into_iter().find(|case| case.model == "sd/sd15").expect("a case");
    let mut whole = unet("sd/sd15", false);
    let theirs = generated(&mut whole, Request::Generate(request(&case))).expect("generates");
    let directory = fixtures().join("sd/sd15");
    let mut fitted = 0;
    let mut beside = 64 << 20;
    let error = loop {
        let memory_budget = Some(whole.resident_bytes() + beside);
        let small = Settings { memory_budget, ..Settings::new(&directory, DType::F32, device()) };
        match generated(&mut StableDiffusion::load(&small).expect("loads"), Request::Generate(request(&case))) {
            Ok(ours) => assert!(largest_step(&ours[0].rgb, &theirs[0].rgb) <= PIXEL, "{beside} bytes next to the model"),
            Err(error) => break error,
        }
        fitted += 1;
        beside -= beside / 4;
    };
    assert!(matches!(error, EngineError::OutOfMemory { .. }) && fitted >= 4, "{fitted} budgets, then {error}");
}

#[test]
fn each_kind_of_model_takes_its_own() {
    let of = |name: &str| cases().all.into_iter().find(|case| case.model == name).expect("a case");
    let says = |error: EngineError, words: &str| match error {
        EngineError::Request { field: "step_cache", problem } => assert!(problem.contains(words), "{problem}"),
        other => panic!("{other}"),
    };
    let threshold = Case { interval: None, threshold: Some(0.1), ..of("sd/sd15") };
    let refused = generated(&mut unet("sd/sd15", false), Request::Generate(request(&threshold)));
    says(refused.expect_err("a UNet"), "must have interval");
    let interval = Case { interval: Some(2), threshold: None, ..of("flux") };
    let mut engine = flow::load::<Flux>(&flow::directory("flux"), flow::SETTINGS).expect("the fixture loads");
    says(generated(&mut engine, Request::Generate(request(&interval))).expect_err("a flow"), "must have threshold");
    let interval = Case { interval: Some(2), threshold: None, ..of("qwen-family/edit") };
    says(generated(&mut edits(), Request::Edit(edit(&interval))).expect_err("edits"), "must have threshold");
}
