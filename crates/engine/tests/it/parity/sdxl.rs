//! Stable Diffusion XL against diffusers (`tests/oracle/sdxl.py`): texts, UNet, VAE and whole images.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::schedule::scheduler::Scheduler;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::Conditioning;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::sizes::Sizes;
use atelier_engine::sd::text::Encoding;
use atelier_engine::sd::tiling::Tiling;
use atelier_engine::{Engine, GenerateRequest, Image, InitImage, Sampling, Watch};
use candle_core::{DType, Tensor};
use image::{GrayImage, RgbImage};
use serde::Deserialize;

use super::names::named_scheduler;
use super::stages::{NEGATIVE, PROMPT, largest_step, prompts};
use super::{PIXEL, Reference, RelativeError, STAGE, Stage};
use crate::device;
use crate::engine::copy_directory;

/// Of the images that some cases start from, in pixels.
const SIZE: (u32, u32) = (72, 64);

/// What an image of the reference was asked for.
#[derive(Deserialize)]
struct Case {
    #[serde(deserialize_with = "named_scheduler")]
    scheduler: Scheduler,
    steps: u32,
    guidance_scale: f64,
    width: u32,
    height: u32,
    count: u64,
    negative_prompt: String,
    #[serde(default = "forty_two")]
    seed: u64,
    unet: Option<String>,
    start: Option<String>,
    strength: Option<f64>,
    clip_skip: Option<u32>,
    original_size: Option<[u32; 2]>,
    crops_coords_top_left: Option<[u32; 2]>,
    target_size: Option<[u32; 2]>,
}

fn forty_two() -> u64 {
    42
}

pub(crate) fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/sdxl")
}

pub(super) fn expected() -> Reference {
    Reference::open(&directory().join("expected.safetensors"))
}

pub(super) fn load(directory: &Path) -> StableDiffusion {
    StableDiffusion::load(&Settings::new(directory, DType::F32, device())).expect("loads")
}

pub(crate) fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("bytes")
}

fn encode(engine: &StableDiffusion, negative: Option<&str>, encoding: Encoding) -> Conditioning {
    engine.encode_prompt_with(PROMPT, negative, &Inversions::default(), encoding).expect("encodes")
}

/// The pooled text, in front of the waves of the sizes.
pub(super) fn pooled(added: &Tensor) -> Tensor {
    added.narrow(1, 0, 18).expect("the projection's width")
}

#[test]
fn parity_of_sdxl_texts() {
    let engine = load(&directory());
    let reference = expected();
    let mut states = Stage::new("sdxl, text states");
    let mut pooled_texts = Stage::new("sdxl, pooled text");
    for (name, prompt) in prompts() {
        let text = engine.encode_prompt(&prompt, None, &Inversions::default()).expect("encodes").positive;
        states.compare(name, &text.states, reference.get(&format!("text/{name}")));
        pooled_texts.compare(name, &pooled(&text.added.expect("pooled")), reference.get(&format!("pooled/{name}")));
    }
    for (name, negative, clip_skip) in
        [("zeros", "", 0), ("negative", NEGATIVE, 0), ("skip1", NEGATIVE, 1), ("skip2", NEGATIVE, 2)]
    {
        let encoding = Encoding { clip_skip, sizes: Sizes::default() };
        let rows = encode(&engine, Some(negative), encoding).rows().expect("of one length");
        states.compare(name, &rows.states, reference.get(&format!("text/{name}")));
        pooled_texts.compare(name, &pooled(&rows.added.expect("pooled")), reference.get(&format!("pooled/{name}")));
    }
    states.finish(STAGE);
    pooled_texts.finish(STAGE);
    let encoding = Encoding { clip_skip: 3, sizes: Sizes::default() };
    let error = engine.encode_prompt_with(PROMPT, None, &Inversions::default(), encoding).expect_err("too many").to_string();
    assert!(error.starts_with("clip_skip: must be at most 2"), "{error}");
}

#[test]
fn parity_of_sdxl_unet_and_vae() {
    let engine = load(&directory());
    let reference = expected();
    let mut unet = Stage::new("sdxl, unet");
    let mut vae = Stage::new("sdxl, vae");
    for (batch, height, width) in [(1_usize, 9_usize, 13_usize), (3, 9, 13), (1, 8, 8)] {
        let key = format!("unet/{batch}x{height}x{width}");
        let latents = reference.get(&format!("{key}/latents"));
        let sizes = Sizes { original: [8 * height as u32, 8 * width as u32], crops_top_left: [5, 3], target: [700, 1400] };
        let guided = encode(&engine, Some(NEGATIVE), Encoding { clip_skip: 0, sizes });
        let plain = Conditioning { negative: None, ..guided.clone() };
        let timesteps: &[&str] = if batch == 1 { &["1.0", "333.25", "999.0"] } else { &["500.0"] };
        for timestep in timesteps {
            let at: f64 = timestep.parse().expect("a timestep");
            for (name, text, scale) in [("plain", &plain, 1.0), ("guided", &guided, 7.5)] {
                let text = Conditioning::for_images(std::slice::from_ref(text), &[batch]).expect("rows");
                let ours = engine.predict_noise(latents, at, &text, scale, Tiling::default()).expect("noise");
                let case = format!("{key}/{timestep}/{name}");
                unet.compare(&case, &ours, reference.get(&case));
                let one_by_one = Tiling { one_by_one: true, ..Tiling::default() };
                let ours = engine.predict_noise(latents, at, &text, scale, one_by_one).expect("noise");
                unet.compare(&case, &ours, reference.get(&case));
            }
        }
        if batch == 1 {
            let case = format!("vae/{height}x{width}");
            vae.compare(&case, &engine.decode(latents, Tiling::default()).expect("decodes"), reference.get(&case));
        }
    }
    unet.finish(STAGE);
    vae.finish(STAGE);
}

#[test]
fn parity_of_sdxl_images() {
    let reference = expected();
    let cases: BTreeMap<String, Case> =
        serde_json::from_slice(&fs::read(directory().join("cases.json")).expect("reads")).expect("cases");
    let mut engines: BTreeMap<Option<String>, (tempfile::TempDir, StableDiffusion)> = BTreeMap::new();
    for (name, case) in &cases {
        let (_, engine) = engines.entry(case.unet.clone()).or_insert_with(|| with_unet(case.unet.as_deref()));
        let images = engine.generate(&case.request(), &Watch::new(|_| ())).expect("generates");
        let ours: Vec<u8> = images.into_iter().flat_map(|Image { rgb, .. }| rgb).collect();
        let mut stage = Stage::new(format!("sdxl, image, {name}, 8 bit"));
        stage.note(name, f64::from(largest_step(&ours, &bytes(reference.get(&format!("image/{name}"))))));
        stage.finish(RelativeError(f64::from(PIXEL)));
    }
}

/// The checkpoint, its UNet replaced by a variant.
fn with_unet(variant: Option<&str>) -> (tempfile::TempDir, StableDiffusion) {
    let copy = tempfile::tempdir().expect("a directory");
    copy_directory(&directory(), copy.path());
    if let Some(variant) = variant {
        fs::remove_dir_all(copy.path().join("unet")).expect("removes");
        copy_directory(&directory().join("variants").join(variant).join("unet"), &copy.path().join("unet"));
    }
    let engine = load(copy.path());
    (copy, engine)
}

impl Case {
    fn request(&self) -> GenerateRequest {
        let start = self.start.as_deref().map(|kind| {
            let starts = Reference::read("starts");
            let rgb = RgbImage::from_raw(SIZE.0, SIZE.1, bytes(starts.get("image"))).expect("an image");
            let mask =
                (kind == "mask").then(|| GrayImage::from_raw(SIZE.0, SIZE.1, bytes(starts.get("mask"))).expect("a mask"));
            InitImage { rgb, mask }
        });
        let size = if start.is_some() { SIZE } else { (self.width, self.height) };
        GenerateRequest {
            prompt: PROMPT.into(),
            negative_prompt: self.negative_prompt.clone(),
            loras: vec![],
            embeddings: vec![],
            start,
            controls: vec![],
            image_prompts: vec![],
            strength: self.strength.unwrap_or(1.0),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            scheduler: self.scheduler,
            sampling: Sampling {
                clip_skip: self.clip_skip.unwrap_or_default(),
                original_size: self.original_size,
                crops_coords_top_left: self.crops_coords_top_left,
                target_size: self.target_size,
                ..Sampling::default()
            },
            mode: None,
            width_px: size.0,
            height_px: size.1,
            seeds: (self.seed..self.seed + self.count).collect(),
        }
    }
}
