//! What previews look like: the bundled models' own maps from latents to colours, against the images that they became; and those of flow models
//! with random weights.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use atelier_engine::flow::family::Family;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::preview::Preview;
use atelier_engine::qwen::engine::QwenEngine;
use atelier_engine::qwen::precision::Precision;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;
use atelier_engine::{EditRequest, Engine as _, GenerateRequest, Image, InitImage, QueuedRequest, Request, Watch};
use candle_core::{DType, Device};
use image::RgbImage;

use super::tryon::example;
use super::{model, request};
use crate::parity::flow;
use crate::parity::tiny_edit::{INSTRUCTION, directory, settings};

/// The least correlation of all channels with the means of the finished image's pixels. tiny-sd has 0.904, tiny-edit 0.924.
const LEAST_OF_SD: f64 = 0.85;
const LEAST_OF_EDIT: f64 = 0.88;

fn watched() -> (Watch, Arc<Mutex<Vec<Preview>>>) {
    let seen: Arc<Mutex<Vec<Preview>>> = Arc::default();
    let log = Arc::clone(&seen);
    (Watch::new(|_| ()).with_previews(|| true, move |preview| log.lock().unwrap().push(preview)), seen)
}

/// The correlation of the bytes of a preview with the means of the pixels that each of its pixels stands for.
fn correlation(preview: &Preview, image: &Image) -> f64 {
    let factor = image.width_px / preview.width_px;
    assert_eq!((preview.width_px * factor, preview.height_px * factor), (image.width_px, image.height_px));
    let mut means = vec![0.0; preview.image.len()];
    for (place, byte) in image.rgb.iter().enumerate() {
        let x = place as u32 / 3 % image.width_px;
        let y = place as u32 / 3 / image.width_px;
        let pixel = y / factor * preview.width_px + x / factor;
        means[pixel as usize * 3 + place % 3] += f64::from(*byte) / f64::from(factor * factor);
    }
    let shown: Vec<f64> = preview.image.iter().map(|byte| f64::from(*byte)).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let of_shown = mean(&shown);
    let of_means = mean(&means);
    let product = |one: &[f64], of_one: f64, other: &[f64], of_other: f64| -> f64 {
        one.iter().zip(other).map(|(one, other)| (one - of_one) * (other - of_other)).sum()
    };
    product(&shown, of_shown, &means, of_means)
        / (product(&shown, of_shown, &shown, of_shown) * product(&means, of_means, &means, of_means)).sqrt()
}

#[test]
fn a_preview_of_tiny_sd_looks_like_its_image() {
    let mut engine = StableDiffusion::load(&Settings::new(model(""), DType::F32, Device::Cpu)).unwrap();
    let plain = GenerateRequest { steps: 8, ..request("a red striped mug on the beach", 3, None) };
    let first = engine.generate(&plain, &Watch::new(|_| ())).unwrap().remove(0);
    let rgb = RgbImage::from_raw(first.width_px, first.height_px, first.rgb).unwrap();
    // Two steps of little noise: the first one predicts almost what the last one leaves.
    let again = GenerateRequest { start: Some(InitImage { rgb, mask: None }), strength: 0.25, ..plain };
    let (watch, seen) = watched();
    let image = engine.generate(&again, &watch).unwrap().remove(0);
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen[0].step, seen[0].steps), (1, 1, 2), "the last step is its image");
    let correlation = correlation(&seen[0], &image);
    println!("tiny-sd: {correlation:.3}");
    assert!(correlation >= LEAST_OF_SD, "{correlation}");
}

#[test]
fn a_preview_of_tiny_edit_looks_like_its_image() {
    let mut engine = QwenEngine::load(&directory(), settings(None), Precision::of(&Device::Cpu), Device::Cpu).unwrap();
    let example = example(0);
    let edit = EditRequest {
        images: vec![example.person, example.garment],
        prompt: INSTRUCTION.into(),
        negative_prompt: String::new(),
        loras: Vec::new(),
        steps: 4,
        guidance_scale: 1.0,
        mode: Some("lora".into()),
        seeds: vec![0],
        width_px: 96,
        height_px: 128,
        step_cache: None,
    };
    let (watch, seen) = watched();
    let order = QueuedRequest { request: Request::Edit(edit), watch };
    let image = engine.generate_together(&[order]).unwrap().remove(0).unwrap().remove(0);
    let seen = seen.lock().unwrap();
    assert_eq!((seen[0].step, seen[0].steps), (1, 4));
    let correlation = correlation(&seen[0], &image);
    println!("tiny-edit: {correlation:.3}");
    assert!(correlation >= LEAST_OF_EDIT, "{correlation}");
}

/// Of random weights neither an image looks like anything nor what a linear map makes of its latents: a flow model is asked for a preview that has
/// colours, and for the image that it makes unwatched.
fn a_flow_is_shown<F: Family>(name: &str) {
    let mut engine = flow::load::<F>(&flow::directory(name), flow::SETTINGS).unwrap();
    let asked = GenerateRequest { steps: 2, ..flow::plain(name) };
    let unwatched = engine.generate(&asked, &Watch::new(|_| ())).unwrap().remove(0);
    let (watch, seen) = watched();
    let image = engine.generate(&asked, &watch).unwrap().remove(0);
    assert_eq!(image.rgb, unwatched.rgb, "{name}");
    let seen = seen.lock().unwrap();
    assert_eq!((seen.len(), seen[0].step, seen[0].steps), (1, 1, 2), "{name}");
    println!("{name}: {:.3}", correlation(&seen[0], &image));
    let distinct: BTreeSet<u8> = seen[0].image.iter().copied().collect();
    assert!(distinct.len() > 16, "{name}: {distinct:?}");
}

#[test]
fn flow_models_show_previews_and_make_the_same_image() {
    a_flow_is_shown::<ZImage>("z-image");
    a_flow_is_shown::<Flux>("flux");
}
