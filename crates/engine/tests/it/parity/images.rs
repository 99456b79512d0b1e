//! Whole generations, from seeds to pixels.

use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::{Engine, GenerateRequest, Image, Sampling, Watch};

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
    GenerateRequest {
        prompt: PROMPT.into(),
        negative_prompt: NEGATIVE.into(),
        loras: vec![],
        embeddings: vec![],
        start: None,
        controls: vec![],
        image_prompts: vec![],
        strength: 1.0,
        steps: 5,
        guidance_scale,
        scheduler,
        sampling: Sampling::default(),
        mode: None,
        width_px: 104,
        height_px: 72,
        seeds: (42..42 + num_images).collect(),
    }
}
