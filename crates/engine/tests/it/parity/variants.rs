//! Stable Diffusion's relatives against diffusers (`tests/oracle/variants.py`): inpainting `UNet`s, LCM, other text encoders.

use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::schedule::scheduler::{Sampler, Scheduler};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{Engine, EngineError, GenerateRequest, Image, InitImage, Watch};
use candle_core::{DType, Tensor};
use image::{GrayImage, Luma, RgbImage, imageops};

use super::images::request;
use super::names::scheduler;
use super::stages::{PROMPT, largest_step};
use super::starts::from;
use super::{PIXEL, Reference, RelativeError, STAGE, Stage};
use crate::device;
use crate::engine::checkpoints::{copied, edit};
use crate::engine::copy_directory;

/// What makes a request one that is refused.
type Change = fn(&mut GenerateRequest);

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sd-variants")
}

fn expected() -> Reference {
    Reference::open(&directory().join("expected.safetensors"))
}

fn load(directory: &Path) -> StableDiffusion {
    StableDiffusion::load(&Settings::new(directory, DType::F32, device())).expect("loads")
}

/// The fixture with another component, and another pipeline's name for it.
fn variant(name: &str, component: &str, pipeline: &str) -> (tempfile::TempDir, StableDiffusion) {
    let copy = copied();
    fs::remove_dir_all(copy.path().join(component)).expect("removes");
    copy_directory(&directory().join(name).join(component), &copy.path().join(component));
    edit(&copy.path().join("model_index.json"), "\"StableDiffusionPipeline\"", &format!("\"{pipeline}\""));
    let engine = load(copy.path());
    (copy, engine)
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("bytes")
}

fn generate(engine: &mut StableDiffusion, request: &GenerateRequest) -> Result<Vec<Image>, EngineError> {
    engine.generate(request, &Watch::new(|_| ()))
}

fn compare(engine: &mut StableDiffusion, stage: &mut Stage, case: &str, request: &GenerateRequest) {
    let images = generate(engine, request).expect("generates");
    let ours: Vec<u8> = images.into_iter().flat_map(|image| image.rgb).collect();
    stage.note(case, f64::from(largest_step(&ours, &bytes(expected().get(case)))));
}

#[test]
fn parity_of_inpainting_unets() {
    let (_copy, mut engine) = variant("inpaint", "unet", "StableDiffusionInpaintPipeline");
    let starts = Reference::read("starts");
    let image = bytes(starts.get("image"));
    let mask = bytes(starts.get("mask"));
    let mut stage = Stage::new("inpainting unet, 8 bit");
    for (scheduler, name) in
        [(Scheduler::plain(Sampler::DpmSolverPlusPlus), "dpmsolver++"), (Scheduler::plain(Sampler::EulerAncestral), "euler_a")]
    {
        for strength in [1.0, 0.6] {
            let request = from(&image, Some(&mask), scheduler, strength, 2);
            compare(&mut engine, &mut stage, &format!("inpaint/{name}/{strength:?}"), &request);
        }
    }
    let mut request = from(&image, Some(&mask), Scheduler::plain(Sampler::DpmSolverPlusPlus), 1.0, 1);
    request.guidance_scale = 1.0;
    compare(&mut engine, &mut stage, "inpaint/unguided", &request);
    stage.finish(RelativeError(f64::from(PIXEL)));
    engine.warm_up().expect("a blank image to fill in");
    for request in [
        from(&image, None, Scheduler::plain(Sampler::Ddim), 0.8, 1),
        super::images::request(Scheduler::plain(Sampler::Ddim), 7.5, 1),
    ] {
        let error = generate(&mut engine, &request).expect_err("nothing to fill in").to_string();
        assert!(error.starts_with("mask_image: ") && error.contains("init_image and mask_image"), "{error}");
    }
}

/// Key of a case: `instructed/SCHEDULER/STEPS/SIZE/GUIDANCE/IMAGE GUIDANCE`.
#[test]
fn parity_of_unets_that_edit_an_image() {
    let (_copy, mut engine) = variant("instructed", "unet", "StableDiffusionInstructPix2PixPipeline");
    let reference = expected();
    let image = RgbImage::from_raw(128, 136, bytes(reference.get("edited"))).expect("an image");
    let mut stage = Stage::new("instruct-pix2pix unet, 8 bit");
    let mut cases: Vec<&String> = reference.0.keys().filter(|key| key.starts_with("instructed/")).collect();
    cases.sort();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let request = instructed(case, &image);
        compare(&mut engine, &mut stage, case, &request);
    }
    stage.finish(RelativeError(f64::from(PIXEL)));
    engine.warm_up().expect("a blank image to edit");
    let refused: [(Change, &str, &str); 2] = [
        (|request| request.start = None, "init_image: ", "needs init_image"),
        (
            |request| {
                let mask = GrayImage::from_pixel(request.width_px, request.height_px, Luma([255]));
                request.start.as_mut().expect("an image").mask = Some(mask);
            },
            "mask_image: ",
            "leave mask_image out",
        ),
    ];
    for (change, field, problem) in refused {
        let mut request = instructed("instructed/ddim/6/72x104/7.5/1.5", &image);
        change(&mut request);
        let error = generate(&mut engine, &request).expect_err("refused").to_string();
        assert!(error.starts_with(field) && error.contains(problem), "{error}");
    }
    let mut plain = super::images::request(Scheduler::plain(Sampler::Ddim), 7.5, 1);
    plain.sampling.image_guidance_scale = Some(1.5);
    let error = generate(&mut load(&super::fixtures().join("sd15")), &plain).expect_err("no model that edits").to_string();
    assert!(error.starts_with("image_guidance_scale: ") && error.contains("instruct-pix2pix"), "{error}");
}

/// `image`: its upper left corner is what is edited.
fn instructed(case: &str, image: &RgbImage) -> GenerateRequest {
    let [_, name, steps, size, guidance, image_guidance] = case.split('/').collect::<Vec<_>>()[..] else { panic!("{case}") };
    let (width, height) = size.split_once('x').expect("a size");
    let mut request =
        request(scheduler(name).expect(name), guidance.parse().expect("a number"), if name == "euler_a" { 2 } else { 1 });
    request.steps = steps.parse().expect("a number");
    (request.width_px, request.height_px) = (width.parse().expect("a number"), height.parse().expect("a number"));
    request.sampling.image_guidance_scale = Some(image_guidance.parse().expect("a number"));
    // What such a model never reads.
    request.strength = 0.3;
    let rgb = imageops::crop_imm(image, 0, 0, request.width_px, request.height_px).to_image();
    request.start = Some(InitImage { rgb, mask: None });
    request
}

/// The scale is an input: one forward pass a step, and no negative prompt.
#[test]
fn parity_of_models_distilled_over_the_guidance_scale() {
    let (_copy, mut engine) = variant("lcm", "unet", "LatentConsistencyModelPipeline");
    let mut stage = Stage::new("lcm unet, 8 bit");
    for guidance in [8.5, 1.0, 3.25] {
        let mut request = request(Scheduler::plain(Sampler::Lcm), guidance, 2);
        request.steps = 4;
        compare(&mut engine, &mut stage, &format!("lcm/{guidance:?}"), &request);
    }
    compare(&mut engine, &mut stage, "lcm/dpmsolver++", &request(Scheduler::plain(Sampler::DpmSolverPlusPlus), 4.0, 1));
    stage.finish(RelativeError(f64::from(PIXEL)));
    engine.warm_up().expect("the sides of its config.json, 96x64 pixels");
}

#[test]
fn parity_of_text_encoders() {
    let reference = expected();
    let mut stage = Stage::new("text encoders");
    for activation in ["gelu_new", "gelu_pytorch_tanh", "gelu"] {
        let copy = copied();
        edit(&copy.path().join("text_encoder/config.json"), "\"quick_gelu\"", &format!("\"{activation}\""));
        let states = load(copy.path()).encode_prompt(PROMPT, None, &Inversions::default()).expect("states");
        stage.compare(activation, &states.positive.states, reference.get(&format!("text/{activation}")));
    }
    let (_copy, engine) = variant("projection", "text_encoder", "StableDiffusionPipeline");
    let states = engine.encode_prompt(PROMPT, None, &Inversions::default()).expect("states");
    stage.compare("projection", &states.positive.states, reference.get("text/projection"));
    stage.finish(STAGE);
}
