//! IP-Adapters against diffusers (`tests/oracle/ip_adapter.py`): what is seen, tokens, the UNet's look, and whole images.

use std::collections::BTreeMap;
use std::fs;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::Conditioning;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::ip_adapter::files::IpAdapterFile;
use atelier_engine::sd::settings::Settings;
use atelier_engine::sd::sizes::Sizes;
use atelier_engine::sd::text::Encoding;
use atelier_engine::steering::ImagePrompt;
use atelier_engine::{Engine, GenerateRequest, Image, Sampling, Watch};
use candle_core::{DType, Device};
use image::RgbImage;
use serde::Deserialize;
use tempfile::TempDir;

use super::controlnets;
use super::sdxl::bytes;
use super::stages::{NEGATIVE, PROMPT, largest_step};
use super::steered::{Steered, checkpoint, fixtures, one, with_unet};
use super::{PIXEL, Reference, RelativeError, STAGE, Stage};
use crate::{device, own_device};

/// Pixels of each drawing of the reference, width and height.
const DRAWINGS: [(&str, u32, u32); 4] = [("fox", 32, 32), ("tower", 41, 90), ("road", 100, 37), ("stamp", 20, 14)];

/// What an image of the reference was asked for.
#[derive(Deserialize)]
struct Case {
    #[serde(flatten)]
    steered: Steered,
    /// The directory of the adapters; none: that of the model.
    files: Option<String>,
    image_guidance_scale: Option<f64>,
    adapters: Vec<AdapterCase>,
}

#[derive(Deserialize)]
struct AdapterCase {
    name: String,
    images: Vec<String>,
    #[serde(default = "one")]
    scale: f64,
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
    let settings = Settings { ip_adapters: files(model), ..Settings::new(checkpoint(model), DType::F32, device) };
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
    let mut engines: BTreeMap<(String, Option<String>), (TempDir, StableDiffusion)> = BTreeMap::new();
    for (name, case) in &cases {
        let engine = engines.entry((case.steered.model.clone(), case.steered.unet.clone()));
        let (_, engine) = engine.or_insert_with(|| loaded(case, device.clone()));
        let images = engine.generate(&case.request(&reference), &Watch::new(|_| ())).expect("generates");
        let ours: Vec<u8> = images.into_iter().flat_map(|Image { rgb, .. }| rgb).collect();
        let mut stage = Stage::new(format!("IP-Adapter, image, {name}, 8 bit"));
        stage.note(name, f64::from(largest_step(&ours, &bytes(reference.get(&format!("image/{name}"))))));
        stage.finish(RelativeError(f64::from(PIXEL)));
    }
}

fn loaded(case: &Case, device: Device) -> (TempDir, StableDiffusion) {
    let Steered { model, unet, .. } = &case.steered;
    let copy = with_unet(model, unet.as_ref().map(|variant| fixtures().join(variant)).as_deref());
    let directory = case.files.as_ref().unwrap_or(model);
    // Those of the checkpoint's own UNet.
    let controlnets = if unet.is_none() { controlnets::files(model, &["canny"]) } else { Vec::new() };
    let settings =
        Settings { controlnets, ip_adapters: files(directory), graphs: true, ..Settings::new(copy.path(), DType::F32, device) };
    let engine = StableDiffusion::load(&settings).expect("loads");
    (copy, engine)
}

impl Case {
    fn request(&self, reference: &Reference) -> GenerateRequest {
        let image_prompts = self.adapters.iter().map(|AdapterCase { name, images, scale }| {
            prompt(reference, name, &images.iter().map(String::as_str).collect::<Vec<_>>(), *scale)
        });
        GenerateRequest {
            image_prompts: image_prompts.collect(),
            sampling: Sampling { image_guidance_scale: self.image_guidance_scale, ..Sampling::default() },
            ..self.steered.request(reference)
        }
    }
}
