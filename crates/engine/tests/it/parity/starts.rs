//! Generations that start from an image: the encoder, image-to-image and inpainting.

use atelier_engine::pixels::to_pixels;
use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::{Engine, GenerateRequest, InitImage, Watch};
use candle_core::Tensor;
use image::{GrayImage, RgbImage};

use super::images::request;
use super::stages::largest_step;
use super::{PIXEL, Reference, RelativeError, STAGE, Stage, engine};

use crate::device;

const SIZE: (u32, u32) = (72, 64);

/// (scheduler, its name in the reference, images, whether there are all three strengths), as in the oracle's script.
const CASES: [(Scheduler, &str, u64, bool); 8] = [
    (Scheduler::plain(Sampler::DpmSolverPlusPlus), "dpmsolver++", 1, true),
    (Scheduler::karras(Sampler::DpmSolverPlusPlus), "dpmsolver++-karras", 1, false),
    (Scheduler::plain(Sampler::DpmSolverPlusPlusSde), "dpmsolver++-sde", 1, false),
    (Scheduler::plain(Sampler::UniPc), "unipc", 1, true),
    (Scheduler::plain(Sampler::Ddim), "ddim", 1, false),
    (Scheduler::plain(Sampler::Euler), "euler", 1, true),
    (Scheduler::plain(Sampler::EulerAncestral), "euler_a", 2, false),
    (Scheduler::plain(Sampler::Lcm), "lcm", 1, false),
];

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("bytes")
}

#[test]
fn parity_of_the_encoder() {
    let engine = engine("sd15");
    let reference = Reference::read("starts");
    let width = SIZE.0 as usize;
    let height = SIZE.1 as usize;
    let pixels = to_pixels(&bytes(reference.get("image")), width, height, &device()).expect("pixels");
    let conditionings = engine.encode_image(&pixels).expect("encodes");
    let scaled = |name: &str| (reference.get(name) * 0.18215).expect("a tensor");
    let mut stage = Stage::new("sd15, vae encoder");
    stage.compare("mean", &conditionings.mean, &scaled("mean"));
    stage.compare("std", &conditionings.std, &scaled("std"));
    stage.finish(STAGE);
}

#[test]
fn parity_of_generations_from_a_image() {
    let mut engine = engine("sd15");
    let reference = Reference::read("starts");
    let image = bytes(reference.get("image"));
    let mask = bytes(reference.get("mask"));
    for (way, mask) in [("from_image", None), ("inpaint", Some(mask))] {
        for (scheduler, name, count, all) in CASES {
            let strengths: &[f64] = if all { &[0.35, 0.8, 1.0] } else { &[0.8] };
            let count = if mask.is_some() { 1 } else { count };
            let mut stage = Stage::new(format!("{way}, {name}, 8 bit"));
            for strength in strengths {
                let request = from(&image, mask.as_deref(), scheduler, *strength, count);
                let generated = engine.generate(&request, &Watch::new(|_| ())).expect("generates");
                let ours: Vec<u8> = generated.into_iter().flat_map(|image| image.rgb).collect();
                let case = format!("{way}/{name}/{strength:?}");
                stage.note(&case, f64::from(largest_step(&ours, &bytes(reference.get(&case)))));
            }
            stage.finish(RelativeError(f64::from(PIXEL)));
        }
    }
}

pub(super) fn from(image: &[u8], mask: Option<&[u8]>, scheduler: Scheduler, strength: f64, count: u64) -> GenerateRequest {
    let mut request = request(scheduler, 7.5, count);
    request.steps = 8;
    request.strength = strength;
    (request.width_px, request.height_px) = SIZE;
    let rgb = RgbImage::from_raw(SIZE.0, SIZE.1, image.to_vec()).expect("an image");
    let mask = mask.map(|mask| GrayImage::from_raw(SIZE.0, SIZE.1, mask.to_vec()).expect("a mask"));
    request.start = Some(InitImage { rgb, mask });
    request
}
