//! How the engine takes what it cannot generate, and how a generation is followed and stopped.

mod batches;
pub(crate) mod checkpoints;
mod edits;
mod embeddings;
mod finite;
mod layouts;
mod loras;
mod memory;
mod packed;
mod tokenizers;
mod watching;

use std::fs;
use std::path::{Path, PathBuf};

use atelier::engine::sd::StableDiffusion;
use atelier::engine::{Engine, EngineError, GenerateRequest, Image, LoraFile, Watch};
use atelier::job::task::{
    Generate, GuidanceScale, ImageCount, LoraScale, ModelName, Prompt, Scheduler, Seed, SidePx, Size, StepCount,
};
use candle_core::{DType, Device};

const STEPS: u32 = 3;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sd")
}

fn engine() -> StableDiffusion {
    StableDiffusion::load(&fixtures().join("sd15"), DType::F32, Device::Cpu).expect("the fixture loads")
}

fn request(loras: Vec<LoraFile>) -> GenerateRequest {
    let side = SidePx::new(64).expect("a side");
    let task = Generate {
        model: ModelName::new("fixture").expect("a name"),
        prompt: Prompt::new("a red lighthouse").expect("a prompt"),
        negative_prompt: Prompt::default(),
        loras: vec![],
        embeddings: vec![],
        start: None,
        steps: StepCount::new(u64::from(STEPS)).expect("steps"),
        guidance_scale: GuidanceScale::new(7.5).expect("a scale"),
        scheduler: Scheduler::DpmSolverPlusPlus,
        size: Size::new(side, side),
        num_images: ImageCount::one(),
        seed: Seed::new(7).expect("a seed"),
    };
    GenerateRequest { task, loras, embeddings: vec![], start: None }
}

fn lora(path: PathBuf) -> LoraFile {
    LoraFile { path, scale: LoraScale::one() }
}

fn generate(engine: &mut StableDiffusion, loras: Vec<LoraFile>) -> Result<Vec<Image>, EngineError> {
    engine.generate(&request(loras), &Watch::new(|_| ()))
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
