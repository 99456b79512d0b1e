//! Flows that start from an image, also under a mask, against diffusers' own pipelines (`tests/oracle/flow_starts.py`).

use std::sync::{Arc, Mutex};

use atelier_engine::flow::engine::{FlowEngine, Settings};
use atelier_engine::flow::family::Family;
use atelier_engine::flow::flux::Flux;
use atelier_engine::flow::z_image::ZImage;
use atelier_engine::pixels::to_pixels;
use atelier_engine::qwen::packing::Grid;
use atelier_engine::step_cache::StepCache;
use atelier_engine::{Engine as _, EngineError, GenerateRequest, InitImage, Sampling, Watch};
use candle_core::{Device, IndexOp as _, Tensor};
use image::{GrayImage, Luma, imageops};
use serde::Deserialize;

use super::flow::{SETTINGS, copied, directory, generate, load, plain, shifting};
use super::qwen_text::image;
use super::stages::largest_step;
use super::{PIXEL, Reference, RelativeError, SCHEDULE, STAGE, Stage};
use crate::{device, own_device};

/// Pixels of a token's side in both fixtures.
const TOKEN_PX: u32 = 16;

#[derive(Deserialize)]
struct Cases {
    prompt: String,
    #[serde(rename = "cases")]
    all: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    key: String,
    family: String,
    steps: u32,
    strength: f64,
    masked: bool,
    dynamic: bool,
    width: u32,
    height: u32,
    seeds: Vec<u64>,
}

fn cases() -> Cases {
    let file = std::fs::read_to_string(directory("flow_starts.json")).expect("the oracle's script has written it");
    serde_json::from_str(&file).expect("cases")
}

fn expected() -> Reference {
    Reference::open(&directory("flow_starts.safetensors"))
}

fn mask() -> GrayImage {
    let mask = expected().get("mask").clone();
    let (height, width) = mask.dims2().expect("a mask");
    let bytes = mask.flatten_all().and_then(|flat| flat.to_vec1::<u8>()).expect("bytes");
    GrayImage::from_raw(width as u32, height as u32, bytes).expect("as many bytes")
}

/// The upper left part of image and mask.
fn start(width: u32, height: u32, masked: bool) -> InitImage {
    let rgb = image(expected().get("image"));
    InitImage {
        rgb: imageops::crop_imm(&rgb, 0, 0, width, height).to_image(),
        mask: masked.then(|| imageops::crop_imm(&mask(), 0, 0, width, height).to_image()),
    }
}

impl Case {
    fn request(&self, prompt: &str) -> GenerateRequest {
        GenerateRequest {
            prompt: prompt.to_owned(),
            start: Some(start(self.width, self.height, self.masked)),
            strength: self.strength,
            steps: self.steps,
            width_px: self.width,
            height_px: self.height,
            seeds: self.seeds.clone(),
            ..plain(&self.family)
        }
    }

    fn grid(&self) -> Grid {
        Grid { height: (self.height / TOKEN_PX) as usize, width: (self.width / TOKEN_PX) as usize }
    }
}

fn compare<F: Family>(name: &str) {
    let expected = expected();
    let Cases { prompt, all } = cases();
    let shifting = shifting(name);
    let mut plain = load::<F>(&directory(name), SETTINGS).expect("the fixture loads");
    let mut dynamic = load::<F>(shifting.path(), SETTINGS).expect("loads");
    let rgb = image(expected.get("image"));
    let pixels = to_pixels(&rgb, rgb.width() as usize, rgb.height() as usize, &device()).expect("pixels");
    let moments = plain.encode_image(&pixels).expect("encodes");
    let mut encoder = Stage::new(format!("{name} encoder"));
    encoder.compare("mean", &moments.mean, expected.get(&format!("{name}/mean")));
    encoder.compare("std", &moments.std, expected.get(&format!("{name}/std")));
    encoder.finish(STAGE);
    let mut sigmas = Stage::new(format!("{name} noise levels from an image"));
    let mut images = Stage::new(format!("{name} from an image, 8 bit"));
    for case in all.iter().filter(|case| case.family == name) {
        let engine = if case.dynamic { &mut dynamic } else { &mut plain };
        let ours = engine.schedule(case.steps, case.grid()).from_image(case.strength).sigmas;
        let theirs = expected.get(&format!("{}/sigmas", case.key));
        assert_eq!(ours.len(), theirs.dims1().expect("sigmas"), "{}: other steps", case.key);
        let ours = Tensor::from_vec(ours, theirs.dims(), theirs.device()).expect("sigmas");
        sigmas.compare(&case.key, &ours, theirs);
        let generated = generate(engine, &case.request(&prompt)).expect("generates");
        assert_eq!(generated.len(), case.seeds.len());
        for (place, ours) in generated.iter().enumerate() {
            let theirs = image(&expected.get(&case.key).i(place).expect("one an image"));
            assert_eq!((ours.width_px, ours.height_px), theirs.dimensions());
            images.note(&format!("{}, image {place}", case.key), f64::from(largest_step(&ours.rgb, theirs.as_raw())));
        }
    }
    sigmas.finish(SCHEDULE);
    images.finish(RelativeError(f64::from(PIXEL)));
}

#[test]
fn parity_of_z_image_from_an_image_and_under_a_mask() {
    compare::<ZImage>("z-image");
}

#[test]
fn parity_of_flux_from_an_image_and_under_a_mask() {
    compare::<Flux>("flux");
}

/// Half of four steps, over a small image.
fn small(name: &str, mask: Option<u8>) -> GenerateRequest {
    let mask = mask.map(|value| GrayImage::from_pixel(48, 32, Luma([value])));
    let start = Some(InitImage { mask, ..start(48, 32, false) });
    GenerateRequest { start, strength: 0.5, steps: 4, width_px: 48, height_px: 32, seeds: vec![5], ..plain(name) }
}

#[test]
fn a_mask_keeps_all_of_an_image_or_nothing() {
    let mut engine = load::<ZImage>(&directory("z-image"), SETTINGS).expect("the fixture loads");
    let mut generated = |request: GenerateRequest| generate(&mut engine, &request).expect("generates").remove(0).rgb;
    let without = generated(small("z-image", None));
    assert!(generated(small("z-image", Some(128))) == without, "white is generated, as if there were no mask");
    let kept = generated(small("z-image", Some(127)));
    assert!(kept != without);
    let other = GenerateRequest { prompt: "a pink dress".into(), ..small("z-image", Some(127)) };
    assert!(generated(other) == kept, "what is kept is the image, whatever the prompt says");
}

#[test]
fn a_start_from_an_image_reports_its_own_steps_and_goes_with_step_caching() {
    let mut engine = load::<Flux>(&directory("flux"), SETTINGS).expect("the fixture loads");
    let steps = Arc::<Mutex<Vec<(u32, u32)>>>::default();
    let heard = Arc::clone(&steps);
    let watch = Watch::new(move |progress| heard.lock().expect("steps").push((progress.step, progress.steps)));
    let request = small("flux", None);
    let without = engine.generate(&request, &watch).expect("generates");
    assert_eq!(*steps.lock().expect("steps"), [(1, 2), (2, 2)]);
    let [nothing, much] = [1e-9, 1e9].map(|threshold| {
        let sampling = Sampling { step_cache: Some(StepCache::Threshold(threshold)), ..Sampling::default() };
        generate(&mut engine, &GenerateRequest { sampling, ..request.clone() }).expect("generates")
    });
    assert!(nothing == without && much != without);
    let watch = Watch::new(|_| ());
    watch.cancel();
    assert!(matches!(engine.generate(&request, &watch), Err(EngineError::Cancelled)));
}

/// A GPU is told steps of a size once, however many a job has of them.
#[test]
fn graphs_of_shorter_schedules_give_the_same_images() {
    let device = own_device();
    let [mut with, mut without] = [true, false].map(|graphs| {
        let settings = Settings { graphs, ..SETTINGS };
        FlowEngine::<ZImage>::load(&directory("z-image"), settings, device.clone()).expect("the fixture loads")
    });
    let request = small("z-image", Some(127));
    let halves = GrayImage::from_fn(48, 32, |x, _| Luma([if x < 24 { 0 } else { 255 }]));
    let half = Some(InitImage { mask: Some(halves), ..start(48, 32, false) });
    for request in [
        GenerateRequest { start: None, strength: 1.0, ..request.clone() },
        small("z-image", None),
        GenerateRequest { start: half, strength: 0.3, ..request },
    ] {
        assert_eq!(generate(&mut with, &request).expect("generates"), generate(&mut without, &request).expect("generates"));
    }
    let counts = with.graph_counts();
    if device.is_cuda() {
        assert_eq!((counts.captured, counts.launched, counts.refused), (1, 4 + 2 + 2 - 1, 0), "{counts:?}");
    }
}

/// The fixture's autoencoder with its tensors changed.
fn with_autoencoder(change: impl Fn(&str, &Tensor) -> Option<Tensor>) -> FlowEngine<ZImage> {
    let copy = copied("z-image");
    let file = copy.path().join("vae/diffusion_pytorch_model.safetensors");
    let own = candle_core::safetensors::load(&file, &Device::Cpu).expect("reads");
    let changed: std::collections::HashMap<String, Tensor> =
        own.iter().filter_map(|(name, tensor)| Some((name.clone(), change(name, tensor)?))).collect();
    candle_core::safetensors::save(&changed, &file).expect("writes");
    load(copy.path(), SETTINGS).expect("loads")
}

#[test]
fn what_no_image_can_be_made_from_is_refused_in_words_and_text_is_generated() {
    let mut decodes = with_autoencoder(|name, tensor| (!name.starts_with("encoder.")).then(|| tensor.clone()));
    let mut broken = with_autoencoder(|name, tensor| {
        let is_broken = name == "encoder.conv_out.bias";
        Some(if is_broken { (tensor * f64::NAN).expect("NaN") } else { tensor.clone() })
    });
    let request = small("z-image", None);
    let strength = |strength| GenerateRequest { strength, ..request.clone() };
    let refused = [
        (generate(&mut decodes, &request), ["init_image: ", "has no encoder"]),
        (generate(&mut broken, &request), ["VAE's encoder", "init_image"]),
        (generate(&mut decodes, &strength(0.0)), ["strength: ", "above 0, at most 1, got 0"]),
        (generate(&mut decodes, &strength(f64::NAN)), ["strength: ", "above 0"]),
    ];
    for (refused, says) in refused {
        let error = refused.expect_err(says[1]).to_string();
        assert!(says.iter().all(|says| error.contains(says)), "{says:?}: {error}");
    }
    let text = GenerateRequest { start: None, strength: 1.0, ..request };
    assert!(generate(&mut decodes, &text).expect("generates") == generate(&mut broken, &text).expect("generates"));
}
