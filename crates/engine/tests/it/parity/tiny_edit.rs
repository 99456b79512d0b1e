//! Whole try-ons with the bundled model against diffusers' own pipeline (`tests/oracle/tiny_edit.py`), from files to pixels.

use std::path::{Path, PathBuf};

use atelier_engine::graphs::GraphCounts;
use atelier_engine::qwen::Variant;
use atelier_engine::qwen::checkpoint::Pipeline;
use atelier_engine::qwen::engine::{QwenEngine, Settings};
use atelier_engine::qwen::precision::Precision;
use atelier_engine::qwen::sizes::Areas;
use atelier_engine::{EditRequest, Engine as _, Image, LoraFile, QueuedRequest, Request, Watch};
use candle_core::Device;

use super::qwen_text::image;
use super::stages::largest_step;
use super::{PIXEL, Reference, Stage};

use crate::{device, own_device};

/// What the workflow says for a job with one garment that says nothing itself.
pub(crate) const INSTRUCTION: &str = "Dress the person in image 1 in the garment of image 2. If a part of image 1 is green, it only tells which part of \
                           the body is meant. Keep the garment's colour, pattern, texture and cut. Keep the person's face, hair, skin, \
                           body, pose and the background as they are.";

pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-edit")
}

/// As models/tiny-edit.yaml says.
pub(crate) fn settings(memory_budget: Option<u64>) -> Settings {
    let lora = LoraFile::new(directory().join("lightning-4steps.safetensors"), 1.0);
    let fp8 = directory().join("fp8-lightning-4steps.safetensors");
    Settings {
        pipeline: Pipeline::Edit,
        modes: vec![
            ("base".into(), Variant::default()),
            ("lora".into(), Variant { loras: vec![lora], distilled: true, ..Variant::default() }),
            ("fp8".into(), Variant { file: Some(fp8), distilled: true, ..Variant::default() }),
        ],
        areas: Areas { reference_px: 12_288, condition_px: 6_912 },
        memory_budget,
        graphs: false,
        forget_between_jobs: false,
    }
}

fn request(expected: &Reference, number: usize, mode: &str, guidance_scale: f64) -> EditRequest {
    let input = |name: &str| image(expected.get(&format!("{number}/{name}")));
    EditRequest {
        images: vec![input("person"), input("garment")],
        prompt: INSTRUCTION.into(),
        negative_prompt: String::new(),
        loras: Vec::new(),
        steps: if mode == "base" { 6 } else { 4 },
        guidance_scale,
        mode: Some(mode.to_owned()),
        seeds: vec![42 + number as u64],
        width_px: 96,
        height_px: 128,
        step_cache: None,
    }
}

fn generate(engine: &mut QwenEngine, request: EditRequest) -> Vec<Image> {
    let order = QueuedRequest { request: Request::Edit(request), watch: Watch::new(|_| ()) };
    engine.generate_together(&[order]).expect("generates").remove(0).expect("generates")
}

#[test]
fn parity_of_whole_tryons() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-edit/expected.safetensors");
    let expected = Reference::open(&file);
    let mut engine =
        QwenEngine::load(&directory(), settings(None), Precision::of(&Device::Cpu), device()).expect("the bundled model loads");
    let mut stage = Stage::new("tiny-edit, 8 bit");
    let distilled = (0..4).flat_map(|number| [(number, "lora", 1.0), (number, "fp8", 1.0)]);
    for (number, mode, guidance) in distilled.chain([(0, "base", 4.0), (1, "base", 1.0)]) {
        let generated = generate(&mut engine, request(&expected, number, mode, guidance));
        let reference = image(expected.get(&format!("{number}/{mode}")));
        let step = largest_step(&generated[0].rgb, reference.as_raw());
        stage.note(&format!("{number}, {mode}"), f64::from(step));
    }
    stage.finish(super::RelativeError(f64::from(PIXEL)));
}

#[test]
fn without_room_for_it_the_text_encoder_is_read_again_and_the_images_are_the_same() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-edit/expected.safetensors");
    let expected = Reference::open(&file);
    let mut roomy = QwenEngine::load(&directory(), settings(None), Precision::of(&Device::Cpu), device()).expect("loads");
    let mut tight =
        QwenEngine::load(&directory(), settings(Some(1 << 20)), Precision::of(&Device::Cpu), device()).expect("loads");
    assert!(roomy.keeps_encoder() && !tight.keeps_encoder());
    for number in [0, 1] {
        let request = request(&expected, number, "lora", 1.0);
        assert_eq!(generate(&mut roomy, request.clone()), generate(&mut tight, request));
    }
}

#[test]
fn graphs_of_tryons_give_the_same_images() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-edit/expected.safetensors");
    let expected = Reference::open(&file);
    let device = own_device();
    // On a GPU bf16, and 8-bit products where the mode has them.
    let [mut with, mut without] = [true, false].map(|graphs| {
        QwenEngine::load(&directory(), Settings { graphs, ..settings(None) }, Precision::of(&device), device.clone())
            .expect("the bundled model loads")
    });
    let mut looks = 0;
    for (number, mode, guidance) in [(0, "lora", 1.0), (0, "fp8", 1.0), (0, "base", 4.0), (1, "fp8", 1.0)] {
        let request = request(&expected, number, mode, guidance);
        looks += u64::from(request.steps) * if guidance > 1.0 { 2 } else { 1 };
        let [ours, theirs] = [&mut with, &mut without].map(|engine| generate(engine, request.clone()));
        assert_eq!(ours, theirs, "{number}, {mode}, guidance {guidance}");
    }
    let counts = with.graph_counts();
    assert_eq!(without.graph_counts(), GraphCounts::default());
    if device.is_cuda() {
        assert!(counts.refused == 0 && counts.launched > counts.captured, "{counts:?}");
        assert_eq!(counts.captured + counts.launched, looks, "{counts:?}");
    }
}
