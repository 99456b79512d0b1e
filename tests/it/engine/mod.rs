//! How the engine takes what it cannot paint, and how a painting is followed and stopped.

mod checkpoints;
mod loras;
mod watching;

use std::path::PathBuf;

use atelier::engine::sd::StableDiffusion;
use atelier::engine::{Engine, EngineError, LoraFile, PaintRequest, Picture, Watch};
use atelier::job::task::{
    Generate, GuidanceScale, ImageCount, LoraScale, ModelName, Prompt, Scheduler, Seed, SidePx, Size, StepCount,
};
use candle_core::Device;

const STEPS: u32 = 3;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sd")
}

fn engine() -> StableDiffusion {
    StableDiffusion::load(&fixtures().join("sd15"), Device::Cpu).expect("the fixture loads")
}

fn request(loras: Vec<LoraFile>) -> PaintRequest {
    let side = SidePx::new(64).expect("a side");
    let task = Generate {
        model: ModelName::new("fixture").expect("a name"),
        prompt: Prompt::new("a red lighthouse").expect("a prompt"),
        negative_prompt: Prompt::default(),
        loras: vec![],
        steps: StepCount::new(u64::from(STEPS)).expect("steps"),
        guidance_scale: GuidanceScale::new(7.5).expect("a scale"),
        scheduler: Scheduler::DpmSolverPlusPlus,
        size: Size::new(side, side),
        num_images: ImageCount::one(),
        seed: Seed::new(7).expect("a seed"),
    };
    PaintRequest { task, loras }
}

fn lora(path: PathBuf) -> LoraFile {
    LoraFile { path, scale: LoraScale::one() }
}

fn paint(engine: &mut StableDiffusion, loras: Vec<LoraFile>) -> Result<Vec<Picture>, EngineError> {
    engine.paint(&request(loras), &Watch::new(|_| ()))
}
