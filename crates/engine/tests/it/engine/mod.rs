//! How the engine takes what it cannot generate, and how a generation is followed and stopped.

mod adapters;
mod batches;
pub(crate) mod checkpoints;
mod classifiers;
mod controlnets;
mod edits;
mod embeddings;
mod finite;
pub(crate) mod gguf;
mod graphs;
mod ip_adapters;
mod layouts;
mod loras;
mod memory;
mod packed;
mod properties;
mod sdxl;
mod segmenters;
mod tokenizers;
mod upscalers;
mod watching;

use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{Engine, EngineError, GenerateRequest, Image, LoraFile, Sampling, Watch};
use candle_core::DType;

use crate::device;
use crate::parity::stages::largest_step;

const STEPS: u32 = 3;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sd")
}

fn engine() -> StableDiffusion {
    StableDiffusion::load(&Settings::new(fixtures().join("sd15"), DType::F32, device())).expect("the fixture loads")
}

fn request(loras: Vec<LoraFile>) -> GenerateRequest {
    GenerateRequest {
        prompt: "a red lighthouse".into(),
        negative_prompt: String::new(),
        loras,
        embeddings: vec![],
        start: None,
        controls: vec![],
        image_prompts: vec![],
        strength: 1.0,
        steps: STEPS,
        guidance_scale: 7.5,
        scheduler: Scheduler::plain(Sampler::DpmSolverPlusPlus),
        sampling: Sampling::default(),
        mode: None,
        width_px: 64,
        height_px: 64,
        seeds: vec![7],
    }
}

fn lora(path: PathBuf) -> LoraFile {
    LoraFile::new(path, 1.0)
}

fn generate(engine: &mut StableDiffusion, loras: Vec<LoraFile>) -> Result<Vec<Image>, EngineError> {
    engine.generate(&request(loras), &Watch::new(|_| ()))
}

/// Less and less memory, until rows are worked on one by one and then nothing fits. `settings`: of a budget; none: as much as there is.
fn pieces_are_the_same_images(request: &GenerateRequest, settings: impl Fn(Option<u64>) -> Settings) {
    let load = |budget| StableDiffusion::load(&settings(budget)).expect("loads");
    let mut engine = load(None);
    let whole = engine.generate(request, &Watch::new(|_| ())).expect("images");
    let mut fitted = 0;
    for kib in [4096, 2048, 1024, 768, 512, 384, 256, 192, 128, 64] {
        match load(Some(engine.resident_bytes() + (kib << 10))).generate(request, &Watch::new(|_| ())) {
            Ok(pieces) => {
                assert!(whole.iter().zip(&pieces).all(|(one, another)| largest_step(&one.rgb, &another.rgb) <= 1), "{kib}");
            }
            Err(error) => {
                assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
                break;
            }
        }
        fitted += 1;
    }
    assert!((2..10).contains(&fitted), "{fitted}");
}

/// A copy of a directory with another value in its config.json.
fn configured(from: &Path, copy: &Path, key: &str, value: &str) {
    copy_directory(from, copy);
    let file = copy.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("reads")).expect("JSON");
    config[key] = serde_json::from_str(value).expect("JSON");
    fs::write(&file, config.to_string()).expect("writes");
}

/// With all that is in it.
pub(crate) fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}
