//! Generation within a budget: in pieces where it is small, and not at all where that is not enough.

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::{Defaults, Settings};
use atelier_engine::{Engine, EngineError, Image, Watch};
use candle_core::DType;

use super::{engine, fixtures, request};

use crate::device;
use crate::parity::sdxl::directory;
use crate::parity::sdxl_adapters::request as sdxl_request;

/// Bytes next to the model in which the request of these tests fits one row at a time, and no better.
const ONE_BY_ONE: u64 = 600_000;

/// The fixture within so many bytes next to its own tensors.
fn within(beside: Option<u64>, defaults: Option<Defaults>) -> StableDiffusion {
    let memory_budget = beside.map(|beside| engine().resident_bytes() + beside);
    let settings = Settings::new(fixtures().join("sd15"), DType::F32, device());
    StableDiffusion::load(&Settings { memory_budget, defaults, ..settings }).expect("the fixture loads")
}

fn generate(budget: Option<u64>) -> Result<Vec<Image>, EngineError> {
    within(budget, None).generate(&request(vec![]), &Watch::new(|_| ()))
}

#[test]
fn a_image_within_a_budget_is_the_same_image() {
    let whole = generate(None).expect("generates");
    let pieces = generate(Some(ONE_BY_ONE)).expect("generates");
    let pairs = whole[0].rgb.iter().zip(&pieces[0].rgb);
    // Matrix products of other sizes are summed in another order.
    assert!(pairs.map(|(one, other)| one.abs_diff(*other)).max().expect("pixels") <= 1);
}

/// Stable Diffusion XL's estimate has a smallest budget too, down to which every image is the same one.
#[test]
fn an_sdxl_image_within_a_budget_is_the_same_image() {
    let load = |beside: Option<u64>| {
        let settings = Settings::new(directory(), DType::F32, device());
        let resident = StableDiffusion::load(&settings).expect("the fixture loads").resident_bytes();
        let memory_budget = beside.map(|beside| resident + beside);
        StableDiffusion::load(&Settings { memory_budget, ..settings }).expect("the fixture loads")
    };
    let request = sdxl_request(2, 5.0, "storm");
    let whole = load(None).generate(&request, &Watch::new(|_| ())).expect("generates");
    let mut fitted = 0;
    let mut beside = 64 << 20;
    let error = loop {
        match load(Some(beside)).generate(&request, &Watch::new(|_| ())) {
            Ok(pieces) => {
                let pairs = whole[0].rgb.iter().zip(&pieces[0].rgb);
                let largest = pairs.map(|(one, other)| one.abs_diff(*other)).max().expect("pixels");
                assert!(largest <= 1, "{largest} with {beside} bytes next to the model");
                fitted += 1;
                beside -= beside / 4;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, EngineError::OutOfMemory { .. }) && fitted >= 4, "{fitted} budgets, then {error}");
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let error = generate(Some(ONE_BY_ONE / 10)).expect_err("too small");
    assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
    let notified = error.to_string();
    assert!(
        notified.contains("64x64 needs about 1 MiB next to the model") && notified.contains("no size would fit"),
        "{notified}"
    );
}

/// What would fail the first job fails the start: the warm-up asks for what most jobs do, not for what is easy.
#[test]
fn a_warm_up_generates_the_defaults_size_with_guidance() {
    let defaults = |side_px: u32, guidance_scale: f64| {
        let defaults = Defaults { width_px: side_px, height_px: side_px, guidance_scale };
        within(Some(ONE_BY_ONE), Some(defaults)).warm_up()
    };
    defaults(64, 7.5).expect("fits, one row at a time");
    let error = defaults(512, 7.5).expect_err("too large");
    assert!(error.to_string().contains("512x512 needs about"), "{error}");
}
