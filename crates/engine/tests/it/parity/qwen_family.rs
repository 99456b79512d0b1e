//! Whole edits and whole images from text with random checkpoints against diffusers' own pipelines (`tests/oracle/qwen_family.py`), from
//! files to pixels.

use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::qwen::Variant;
use atelier_engine::qwen::checkpoint::Pipeline;
use atelier_engine::qwen::engine::{QwenEngine, Settings};
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::sizes::Areas;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::{
    EditRequest, Engine as _, EngineError, GenerateRequest, Generated, LoraFile, QueuedRequest, Request, Sampling, Watch,
};
use candle_core::{Device, IndexOp as _};
use serde::Deserialize;

use super::qwen_text::image;
use super::stages::largest_step;
use super::{PIXEL, Reference, RelativeError, Stage};
use crate::device;

#[derive(Deserialize)]
struct Cases {
    reference_px: u32,
    condition_px: u32,
    #[serde(rename = "cases")]
    all: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    images: Vec<String>,
    prompt: String,
    negative_prompt: String,
    /// The file of a Lightning LoRA.
    lora: Option<String>,
    guidance_scale: f64,
    steps: u32,
    seeds: Vec<u64>,
    width: u32,
    height: u32,
}

impl Case {
    /// Each LoRA file is a mode of its own.
    fn mode(&self) -> String {
        self.lora.clone().unwrap_or_else(|| "base".into())
    }

    fn edit(&self, expected: &Reference) -> Request {
        Request::Edit(EditRequest {
            images: self.images.iter().map(|name| image(expected.get(&format!("input/{name}")))).collect(),
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            loras: Vec::new(),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            mode: Some(self.mode()),
            seeds: self.seeds.clone(),
            width_px: self.width,
            height_px: self.height,
            step_cache: None,
        })
    }

    fn text(&self) -> GenerateRequest {
        GenerateRequest {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            loras: Vec::new(),
            embeddings: Vec::new(),
            start: None,
            controls: vec![],
            image_prompts: vec![],
            strength: 1.0,
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            scheduler: Scheduler::plain(Sampler::Euler),
            sampling: Sampling::default(),
            mode: Some(self.mode()),
            width_px: self.width,
            height_px: self.height,
            seeds: self.seeds.clone(),
        }
    }
}

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen-family").join(name)
}

fn cases(name: &str) -> Cases {
    let file = fs::read_to_string(directory(name).join("cases.json")).expect("the oracle's script has written it");
    serde_json::from_str(&file).expect("cases")
}

fn settings(name: &str, pipeline: Pipeline) -> Settings {
    let Cases { reference_px, condition_px, all: cases } = cases(name);
    let mut modes = vec![("base".to_owned(), Variant::default())];
    for file in cases.iter().filter_map(|case| case.lora.as_ref()) {
        if modes.iter().all(|(mode, _)| mode != file) {
            let loras = vec![LoraFile::new(directory(name).join(file), 1.0)];
            modes.push((file.clone(), Variant { loras, distilled: true, ..Variant::default() }));
        }
    }
    Settings {
        pipeline,
        modes,
        areas: Areas { reference_px, condition_px },
        memory_budget: None,
        graphs: false,
        forget_between_jobs: false,
    }
}

fn load(name: &str, settings: Settings) -> Result<QwenEngine, EngineError> {
    QwenEngine::load(&directory(name), settings, Precision::of(&Device::Cpu), device())
}

fn generate(engine: &mut QwenEngine, request: Request) -> Generated {
    engine.generate_together(&[QueuedRequest { request, watch: Watch::new(|_| ()) }]).expect("nothing fails for all").remove(0)
}

fn compare(name: &str, pipeline: Pipeline) {
    let expected = Reference::open(&directory(name).join("expected.safetensors"));
    let mut engine = load(name, settings(name, pipeline)).expect("the fixture loads");
    let mut stage = Stage::new(format!("qwen {name}, 8 bit"));
    for (number, case) in cases(name).all.iter().enumerate() {
        let request = if pipeline == Pipeline::Edit { case.edit(&expected) } else { Request::Generate(case.text()) };
        let generated = generate(&mut engine, request).expect("generates");
        let reference = expected.get(&format!("expected/{number}"));
        assert_eq!(generated.len(), case.seeds.len());
        for (place, ours) in generated.iter().enumerate() {
            let theirs = image(&reference.i(place).expect("one an image"));
            assert_eq!((ours.width_px, ours.height_px), theirs.dimensions());
            stage.note(&format!("{number}, image {place}"), f64::from(largest_step(&ours.rgb, theirs.as_raw())));
        }
    }
    stage.finish(RelativeError(f64::from(PIXEL)));
}

#[test]
fn parity_of_whole_edits() {
    compare("edit", Pipeline::Edit);
}

#[test]
fn parity_of_whole_images_from_text() {
    compare("image", Pipeline::Text);
}

#[test]
fn a_model_from_text_refuses_by_name_what_it_does_not_read() {
    let mut engine = load("image", settings("image", Pipeline::Text)).expect("the fixture loads");
    let case = &cases("image").all[0];
    let sampling = |sampling: Sampling| GenerateRequest { sampling, ..case.text() };
    let lora = LoraFile::new("none.safetensors".into(), 1.0);
    let wrong = [
        ("scheduler", GenerateRequest { scheduler: Scheduler::plain(Sampler::Ddim), ..case.text() }),
        ("lora", GenerateRequest { loras: vec![lora], ..case.text() }),
        ("clip_skip", sampling(Sampling { clip_skip: 1, ..Sampling::default() })),
        ("guidance_rescale", sampling(Sampling { guidance_rescale: 0.5, ..Sampling::default() })),
        ("sigmas", sampling(Sampling { sigmas: Some(vec![1.0, 0.0]), ..Sampling::default() })),
        ("mode", GenerateRequest { mode: Some("fp8".into()), ..case.text() }),
        ("width", GenerateRequest { width_px: 72, ..case.text() }),
    ];
    for (name, request) in wrong {
        match generate(&mut engine, Request::Generate(request)) {
            Err(EngineError::Request { field, problem }) => assert!(field == name && !problem.is_empty(), "{name}: {field}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    let expected = Reference::open(&directory("edit").join("expected.safetensors"));
    let edit = cases("edit").all[0].edit(&expected);
    let refused = generate(&mut engine, edit).expect_err("it sees no images");
    assert!(matches!(refused, EngineError::Request { field: "task", .. }), "{refused}");
    let long = GenerateRequest { prompt: "é".repeat(1_100), ..case.text() };
    let refused = generate(&mut engine, Request::Generate(long)).expect_err("too long");
    assert!(matches!(refused, EngineError::Request { field: "prompt", .. }), "{refused}");
}

#[test]
fn a_cancelled_image_stops_between_two_steps_and_the_engine_goes_on() {
    let mut engine = load("image", settings("image", Pipeline::Text)).expect("the fixture loads");
    let case = &cases("image").all[0];
    let request = GenerateRequest { steps: 5, ..case.text() };
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let steps = std::sync::Arc::clone(&seen);
    let watch = Watch::new(move |now| steps.lock().expect("alone").push(now.step));
    watch.cancel();
    let queued = QueuedRequest { request: Request::Generate(request.clone()), watch };
    let stopped = engine.generate_together(&[queued]).expect("nothing fails for all").remove(0);
    assert!(matches!(stopped, Err(EngineError::Cancelled)), "{stopped:?}");
    assert!(seen.lock().expect("alone").len() <= 1);
    assert_eq!(generate(&mut engine, Request::Generate(request)).expect("generates").len(), case.seeds.len());
}

/// The files that a text-only checkpoint has are enough, and another family's checkpoint is refused before its weights are read.
#[test]
fn a_checkpoint_of_the_other_family_is_named() {
    assert!(!directory("image").join("processor").exists());
    for (name, pipeline, says) in [
        ("image", Pipeline::Edit, "is of family qwen-image, and the manifest says qwen-image-edit"),
        ("edit", Pipeline::Text, "is of family qwen-image-edit, and the manifest says qwen-image"),
    ] {
        let Err(refused) = load(name, settings(name, pipeline)) else { panic!("{name} must be refused") };
        assert!(refused.to_string().contains(says) && refused.to_string().contains("model_index.json"), "{refused}");
    }
}

/// What one image of a request has is what it has alone.
#[test]
fn images_of_one_request_have_noise_of_their_own() {
    let mut engine = load("image", settings("image", Pipeline::Text)).expect("the fixture loads");
    let request = GenerateRequest { seeds: vec![5, 6, 7], ..cases("image").all[0].text() };
    let together = generate(&mut engine, Request::Generate(request.clone())).expect("generates");
    for image in together {
        let alone = GenerateRequest { seeds: vec![image.seed], ..request.clone() };
        assert_eq!(generate(&mut engine, Request::Generate(alone)).expect("generates"), [image]);
    }
}
