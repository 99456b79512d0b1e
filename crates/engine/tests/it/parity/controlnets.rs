//! ControlNets against diffusers (`tests/oracle/controlnets.py`): what they add in a step, and whole images.

use std::collections::BTreeMap;
use std::fs;

use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::conditioning::Conditioning;
use atelier_engine::sd::controlnet::files::ControlNetFile;
use atelier_engine::sd::inversion::Inversions;
use atelier_engine::sd::settings::Settings;
use atelier_engine::steering::Control;
use atelier_engine::{Engine, Image, Watch};
use candle_core::{DType, Device};
use tempfile::TempDir;

use super::sdxl::bytes;
use super::stages::{PROMPT, largest_step};
use super::steered::{Steered, checkpoint, control_image, fixtures, with_unet};
use super::{PIXEL, Reference, RelativeError, STAGE, Stage};
use crate::{device, own_device};

pub(crate) fn files(model: &str, names: &[&str]) -> Vec<ControlNetFile> {
    let directory = fixtures().join("controlnets").join(model);
    names.iter().map(|name| ControlNetFile { name: (*name).to_owned(), path: directory.join(name) }).collect()
}

/// A model with these ControlNets, its UNet perhaps a variant.
pub(crate) fn load(model: &str, controlnets: Vec<ControlNetFile>, device: Device) -> StableDiffusion {
    let settings = Settings { controlnets, ..Settings::new(checkpoint(model), DType::F32, device) };
    StableDiffusion::load(&settings).expect("loads")
}

fn expected() -> Reference {
    Reference::open(&fixtures().join("controlnets/expected.safetensors"))
}

#[test]
fn parity_of_what_a_controlnet_adds() {
    let reference = expected();
    let original =
        ControlNetFile { name: "original".into(), path: fixtures().join("controlnets/sd15/depth_original.safetensors") };
    let alone = |model: &str, name: &str| {
        let file = fixtures().join("controlnets").join(model).join(name).join("diffusion_pytorch_model.safetensors");
        ControlNetFile { name: "alone".into(), path: file }
    };
    for (model, nets) in [
        ("sd15", [files("sd15", &["canny", "depth"]), vec![original, alone("sd15", "canny")]].concat()),
        ("sdxl", [files("sdxl", &["canny"]), vec![alone("sdxl", "canny")]].concat()),
    ] {
        let engine = load(model, nets, device());
        // Of the net, and of the drawing: a file without a config.json says nothing of the order of its channels.
        let cases: &[(&str, &str, bool)] = match model {
            "sd15" => {
                &[("canny", "canny", false), ("depth", "depth", false), ("original", "depth", true), ("alone", "canny", false)]
            }
            _ => &[("canny", "canny", false), ("alone", "canny", false)],
        };
        for (net, drawing, turned) in cases {
            let mut stage = Stage::new(format!("{model}, ControlNet {net}"));
            for (batch, height, width) in [(1_usize, 9_usize, 13_usize), (2, 8, 10)] {
                let key = format!("{model}/{drawing}/{batch}x{height}x{width}");
                let mut image = control_image(&reference, drawing, 8 * width as u32, 8 * height as u32);
                if *turned {
                    image.pixels_mut().for_each(|pixel| pixel.0.swap(0, 2));
                }
                let text = text(&engine, batch, (8 * width as u32, 8 * height as u32));
                for (timestep, scale) in [(1.0, 1.0), (501.5, 0.6)] {
                    let control = Control { net: (*net).into(), image: image.clone(), scale, start: 0.0, end: 1.0 };
                    let latents = reference.get(&format!("{key}/latents"));
                    let ours = engine.control_residuals(&control, latents, timestep, &text).expect("residuals");
                    let next = format!("{key}/{timestep:?}/{scale:?}/{}", ours.len());
                    assert!(!reference.0.contains_key(&next), "there are more");
                    for (place, residual) in ours.iter().enumerate() {
                        let case = format!("{key}/{timestep:?}/{scale:?}/{place}");
                        stage.compare(&case, residual, reference.get(&case));
                    }
                }
            }
            stage.finish(STAGE);
        }
    }
}

fn text(engine: &StableDiffusion, images: usize, (width, height): (u32, u32)) -> Conditioning {
    let sizes = atelier_engine::sd::sizes::Sizes::of(width, height);
    let encoding = atelier_engine::sd::text::Encoding { clip_skip: 0, sizes };
    let text = engine.encode_prompt_with(PROMPT, None, &Inversions::default(), encoding).expect("encodes");
    Conditioning::for_images(&[text], &[images]).expect("rows")
}

#[test]
fn parity_of_images_with_controlnets() {
    let reference = expected();
    let cases: BTreeMap<String, Steered> =
        serde_json::from_slice(&fs::read(fixtures().join("controlnets/cases.json")).expect("reads")).expect("cases");
    // A stream of its own: on a GPU its steps are captured, what controls them as well.
    let device = own_device();
    let mut engines: BTreeMap<(String, Option<String>), (TempDir, StableDiffusion)> = BTreeMap::new();
    for (name, case) in &cases {
        let engine = engines.entry((case.model.clone(), case.unet.clone()));
        let (_, engine) = engine.or_insert_with(|| loaded(case, device.clone()));
        let images = engine.generate(&case.request(&reference), &Watch::new(|_| ())).expect("generates");
        let ours: Vec<u8> = images.into_iter().flat_map(|Image { rgb, .. }| rgb).collect();
        let mut stage = Stage::new(format!("ControlNet, image, {name}, 8 bit"));
        stage.note(name, f64::from(largest_step(&ours, &bytes(reference.get(&format!("image/{name}"))))));
        stage.finish(RelativeError(f64::from(PIXEL)));
    }
}

fn loaded(case: &Steered, device: Device) -> (TempDir, StableDiffusion) {
    let names: &[&str] = if case.model == "sdxl" { &["canny"] } else { &["canny", "depth"] };
    let unet = case.unet.as_ref().map(|variant| fixtures().join("sdxl/variants").join(variant).join("unet"));
    let copy = with_unet(&case.model, unet.as_deref());
    let settings =
        Settings { controlnets: files(&case.model, names), graphs: true, ..Settings::new(copy.path(), DType::F32, device) };
    let engine = StableDiffusion::load(&settings).expect("loads");
    (copy, engine)
}
