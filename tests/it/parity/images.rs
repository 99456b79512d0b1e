//! Whole generations, from seeds to pixels.

use atelier::engine::{Engine, GenerateRequest, Image, Watch};
use atelier::job::task::sampling::Sampling;
use atelier::job::task::scheduler::{Sampler, Scheduler};
use atelier::job::task::{Generate, GuidanceScale, ImageCount, ModelName, Prompt, Seed, SidePx, Size, StepCount};

use super::stages::{NEGATIVE, PROMPT, largest_step};
use super::{PIXEL, Reference, RelativeError, Stage, engine};

/// (scheduler, its name in the reference, guidance scale, images), as in the oracle's script.
const CASES: [(Scheduler, &str, f64, u64); 5] = [
    (Scheduler::plain(Sampler::DpmSolverPlusPlus), "dpmsolver++", 7.5, 1),
    (Scheduler::karras(Sampler::DpmSolverPlusPlus), "dpmsolver++-karras", 7.5, 1),
    (Scheduler::plain(Sampler::Ddim), "ddim", 7.5, 1),
    (Scheduler::plain(Sampler::Euler), "euler", 1.0, 1),
    (Scheduler::plain(Sampler::EulerAncestral), "euler_a", 7.5, 4),
];

const SAMPLERS: [(Scheduler, &str, f64, u64); 6] = [
    (Scheduler::plain(Sampler::DpmSolverPlusPlusSde), "dpmsolver++-sde", 7.5, 2),
    (Scheduler::karras(Sampler::DpmSolverPlusPlusSde), "dpmsolver++-sde-karras", 7.5, 2),
    (Scheduler::plain(Sampler::UniPc), "unipc", 7.5, 2),
    (Scheduler::karras(Sampler::UniPc), "unipc-karras", 7.5, 2),
    (Scheduler::karras(Sampler::Euler), "euler-karras", 7.5, 2),
    (Scheduler::plain(Sampler::Lcm), "lcm", 7.5, 2),
];

#[test]
fn parity_of_images() {
    compare("sd15", "sd15", &CASES);
    compare("sd2", "sd2", &CASES);
    compare("sd15", "samplers", &SAMPLERS);
}

fn compare(checkpoint: &str, reference: &str, cases: &[(Scheduler, &str, f64, u64)]) {
    let mut engine = engine(checkpoint);
    let reference = Reference::read(reference);
    for (scheduler, name, guidance_scale, count) in cases.iter().copied() {
        let request = request(scheduler, guidance_scale, count);
        let images = engine.generate(&request, &Watch::new(|_| ())).expect("generates");
        let seeds: Vec<u64> = images.iter().map(|image| image.seed).collect();
        assert_eq!(seeds, (42..42 + count).collect::<Vec<_>>());
        let ours: Vec<u8> = images.into_iter().flat_map(|Image { rgb, .. }| rgb).collect();
        let expected = reference.get(&format!("image/{name}")).flatten_all();
        let expected = expected.and_then(|flat| flat.to_vec1::<u8>()).expect("bytes");
        let mut stage = Stage::new(format!("{checkpoint}, image, {name}, 8 bit"));
        stage.note(name, f64::from(largest_step(&ours, &expected)));
        stage.finish(RelativeError(f64::from(PIXEL)));
    }
}

pub(super) fn request(scheduler: Scheduler, guidance_scale: f64, num_images: u64) -> GenerateRequest {
    let side = |px| SidePx::new(px).expect("a side");
    let task = Generate {
        model: ModelName::new("fixture").expect("a name"),
        prompt: Prompt::new(PROMPT).expect("a prompt"),
        negative_prompt: Prompt::new(NEGATIVE).expect("a prompt"),
        loras: vec![],
        embeddings: vec![],
        start: None,
        steps: StepCount::new(5).expect("steps"),
        guidance_scale: GuidanceScale::new(guidance_scale).expect("a scale"),
        scheduler,
        sampling: Sampling::default(),
        size: Size::new(side(104), side(72)),
        num_images: ImageCount::new(num_images).expect("a count"),
        seed: Seed::new(42).expect("a seed"),
    };
    GenerateRequest { task, loras: vec![], embeddings: vec![], start: None }
}
