//! IP-Adapters against diffusers (`tests/oracle/ip_adapter.py`): what is seen, tokens, the UNet's look, and whole images.

use std::collections::BTreeMap;
use std::fs;

use atelier_engine::schedule::scheduler::Scheduler;
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::Conditioning;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::ip_adapter::files::IpAdapterFile;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::sizes::Sizes;
use atelier_engine::sd::text::Encoding;
use atelier_engine::steering::{Control, ImagePrompt};
use atelier_engine::{Engine, GenerateRequest, Image, InitImage, LoraFile, Sampling, Watch};
use candle_core::{DType, Device};
use image::{GrayImage, RgbImage};
use serde::Deserialize;

use super::controlnets::{control_image, files as controlnets, fixtures};
use super::names::named_scheduler;
use super::sdxl::bytes;
use super::stages::{NEGATIVE, PROMPT, largest_step};
use super::{PIXEL, Reference, RelativeError, STAGE, Stage};
use crate::{device, own_device};

/// Pixels of each drawing of the reference, width and height.
const DRAWINGS: [(&str, u32, u32); 4] = [("fox", 32, 32), ("tower", 41, 90), ("road", 100, 37), ("stamp", 20, 14)];

/// What an image of the reference was asked for.
#[derive(Deserialize)]
struct Case {
    model: String,
    /// The directory of the adapters; none: that of the model.
    files: Option<String>,
    #[serde(deserialize_with = "named_scheduler")]
    scheduler: Scheduler,
    steps: u32,
    guidance_scale: f64,
    image_guidance_scale: Option<f64>,
    width: u32,
    height: u32,
    count: u64,
    seed: u64,
    adapters: Vec<AdapterCase>,
    #[serde(default)]
    controls: Vec<ControlCase>,
    unet: Option<String>,
    start: Option<String>,
    strength: Option<f64>,
    #[serde(default)]
    lora: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct AdapterCase {
    name: String,
    images: Vec<String>,
    #[serde(default = "one")]
    scale: f64,
}

#[derive(Deserialize)]
struct ControlCase {
    name: String,
    #[serde(default = "one")]
    scale: f64,
    #[serde(default = "one")]
    end: f64,
}

fn one() -> f64 {
    1.0
}

pub(crate) fn files(directory: &str) -> Vec<IpAdapterFile> {
    let adapters = fixtures().join("ip_adapters");
    let names: &[&str] = if directory == "small" { &["plain"] } else { &["plain", "plus"] };
    let each = names.iter().map(|name| IpAdapterFile {
        name: (*name).to_owned(),
        path: adapters.join(directory).join(format!("{name}.safetensors")),
        image_encoder: adapters.join("image_encoder"),
    });
    each.collect()
}

pub(crate) fn expected() -> Reference {
    Reference::open(&fixtures().join("ip_adapters/expected.safetensors"))
}

/// What the oracle drew under this name.
pub(crate) fn drawing(reference: &Reference, name: &str) -> RgbImage {
    let (_, width, height) = DRAWINGS.into_iter().find(|(drawn, ..)| *drawn == name).expect("a drawing");
    RgbImage::from_raw(width, height, bytes(reference.get(&format!("drawing/{name}")))).expect("an image")
}

fn prompt(reference: &Reference, adapter: &str, drawings: &[&str], scale: f64) -> ImagePrompt {
    let images = drawings.iter().map(|name| drawing(reference, name)).collect();
    ImagePrompt { adapter: adapter.to_owned(), images, scale }
}

fn load(model: &str, device: Device) -> StableDiffusion {
    let checkpoint = if model == "sdxl" { "sdxl" } else { "sd/sd15" };
    let settings = Settings { ip_adapters: files(model), ..Settings::new(fixtures().join(checkpoint), DType::F32, device) };
    StableDiffusion::load(&settings).expect("loads")
}

#[test]
fn parity_of_what_an_ip_adapter_makes_of_an_image() {
    let reference = expected();
    for model in ["sd15", "sdxl"] {
        let engine = load(model, device());
        for adapter in ["plain", "plus"] {
            let mut stage = Stage::new(format!("{model}, IP-Adapter {adapter}, tokens"));
            for (drawing, ..) in DRAWINGS {
                let ours = engine.image_tokens(&prompt(&reference, adapter, &[drawing], 1.0)).expect("tokens");
                for (ours, kind) in ours.iter().zip(["seen", "negative", "positive"]) {
                    let case = format!("{model}/{adapter}/{drawing}/{kind}");
                    stage.compare(&case, ours, reference.get(&case));
                }
            }
            stage.finish(STAGE);
        }
    }
}

#[test]
fn parity_of_a_unet_that_looks_at_images() {
    let reference = expected();
    for model in ["sd15", "sdxl"] {
        let engine = load(model, device());
        for adapter in ["plain", "plus"] {
            let mut stage = Stage::new(format!("{model}, IP-Adapter {adapter}, UNet"));
            for (batch, height, width) in [(1_usize, 9_usize, 13_usize), (2, 8, 10)] {
                let key = format!("{model}/{adapter}/{batch}x{height}x{width}");
                let latents = reference.get(&format!("{key}/latents"));
                let text = text(&engine, batch, (8 * width as u32, 8 * height as u32));
                for (timestep, scale) in [(1.0, 1.0), (501.5, 0.3), (501.5, 0.0)] {
                    let prompts = [prompt(&reference, adapter, &["fox", "road"], scale)];
                    let ours = engine.predict_noise_with_images(latents, timestep, &text, 7.5, &prompts).expect("noise");
                    let case = format!("{key}/{timestep:?}/{scale:?}");
                    stage.compare(&case, &ours, reference.get(&case));
                    if scale != 0.0 {
                        let without = engine.predict_noise_with_images(latents, timestep, &text, 7.5, &[]).expect("noise");
                        let difference =
                            (without - &ours).and_then(|difference| difference.abs()?.max_all()?.to_scalar::<f32>());
                        assert!(difference.expect("a number") > 0.05, "{case}: the images are seen");
                    }
                }
            }
            stage.finish(STAGE);
        }
    }
}

fn text(engine: &StableDiffusion, images: usize, (width, height): (u32, u32)) -> Conditioning {
    let encoding = Encoding { clip_skip: 0, sizes: Sizes::of(width, height) };
    let text = engine.encode_prompt_with(PROMPT, Some(NEGATIVE), &Inversions::default(), encoding).expect("encodes");
    Conditioning::for_images(&[text], &[images]).expect("rows")
}

#[test]
fn parity_of_images_with_image_prompts() {
    let reference = expected();
    let cases: BTreeMap<String, Case> =
        serde_json::from_slice(&fs::read(fixtures().join("ip_adapters/cases.json")).expect("reads")).expect("cases");
    // A stream of its own: on a GPU its steps are captured, what they look at as well.
    let device = own_device();
    let mut engines: BTreeMap<(String, Option<String>), (tempfile::TempDir, StableDiffusion)> = BTreeMap::new();
    for (name, case) in &cases {
        let engine = engines.entry((case.model.clone(), case.unet.clone()));
        let (_, engine) = engine.or_insert_with(|| with_unet(case, device.clone()));
        let images = engine.generate(&case.request(&reference), &Watch::new(|_| ())).expect("generates");
        let ours: Vec<u8> = images.into_iter().flat_map(|Image { rgb, .. }| rgb).collect();
        let mut stage = Stage::new(format!("IP-Adapter, image, {name}, 8 bit"));
        stage.note(name, f64::from(largest_step(&ours, &bytes(reference.get(&format!("image/{name}"))))));
        stage.finish(RelativeError(f64::from(PIXEL)));
    }
}

fn with_unet(case: &Case, device: Device) -> (tempfile::TempDir, StableDiffusion) {
    let copy = tempfile::tempdir().expect("a directory");
    let checkpoint = if case.model == "sdxl" { "sdxl" } else { "sd/sd15" };
    crate::engine::copy_directory(&fixtures().join(checkpoint), copy.path());
    if let Some(variant) = &case.unet {
        fs::remove_dir_all(copy.path().join("unet")).expect("removes");
        crate::engine::copy_directory(&fixtures().join(variant), &copy.path().join("unet"));
    }
    let directory = case.files.as_ref().unwrap_or(&case.model);
    // Those of the checkpoint's own UNet.
    let controlnets = if case.unet.is_none() { controlnets(&case.model, &["canny"]) } else { Vec::new() };
    let settings =
        Settings { controlnets, ip_adapters: files(directory), graphs: true, ..Settings::new(copy.path(), DType::F32, device) };
    let engine = StableDiffusion::load(&settings).expect("loads");
    (copy, engine)
}

impl Case {
    fn request(&self, reference: &Reference) -> GenerateRequest {
        let start = self.start.as_deref().map(|kind| {
            let starts = Reference::read("starts");
            let rgb = RgbImage::from_raw(self.width, self.height, bytes(starts.get("image"))).expect("an image");
            let mask = (kind == "mask").then(|| bytes(starts.get("mask")));
            InitImage { rgb, mask: mask.map(|mask| GrayImage::from_raw(self.width, self.height, mask).expect("a mask")) }
        });
        let controls = self.controls.iter().map(|control| Control {
            net: control.name.clone(),
            image: control_image(reference, &control.name, self.width, self.height),
            scale: control.scale,
            start: 0.0,
            end: control.end,
        });
        let image_prompts = self.adapters.iter().map(|AdapterCase { name, images, scale }| {
            prompt(reference, name, &images.iter().map(String::as_str).collect::<Vec<_>>(), *scale)
        });
        let loras = self.lora.iter().map(|(name, scale)| {
            let path = fixtures().join("sd/loras").join(format!("{name}.safetensors"));
            LoraFile { scale: *scale, ..LoraFile::new(path, 1.0) }
        });
        GenerateRequest {
            prompt: PROMPT.into(),
            negative_prompt: NEGATIVE.into(),
            loras: loras.collect(),
            embeddings: vec![],
            start,
            controls: controls.collect(),
            image_prompts: image_prompts.collect(),
            strength: self.strength.unwrap_or(1.0),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            scheduler: self.scheduler,
            sampling: Sampling { image_guidance_scale: self.image_guidance_scale, ..Sampling::default() },
            mode: None,
            width_px: self.width,
            height_px: self.height,
            seeds: (self.seed..self.seed + self.count).collect(),
        }
    }
}
