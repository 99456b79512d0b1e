//! What the references of ControlNets and of IP-Adapters have in common: what an image was asked for, and of which checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atelier_engine::schedule::scheduler::Scheduler;
use atelier_engine::steering::Control;
use atelier_engine::{GenerateRequest, InitImage, LoraFile, Sampling};
use image::{GrayImage, RgbImage};
use serde::Deserialize;
use tempfile::TempDir;

use super::Reference;
use super::names::named_scheduler;
use super::sdxl::bytes;
use super::stages::{NEGATIVE, PROMPT};

/// What an image of the reference was asked for, as `cases.json` has it.
#[derive(Deserialize)]
pub(super) struct Steered {
    pub(super) model: String,
    #[serde(deserialize_with = "named_scheduler")]
    scheduler: Scheduler,
    steps: u32,
    guidance_scale: f64,
    width: u32,
    height: u32,
    count: u64,
    seed: u64,
    #[serde(default)]
    controls: Vec<ControlCase>,
    pub(super) unet: Option<String>,
    start: Option<String>,
    strength: Option<f64>,
    #[serde(default)]
    lora: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct ControlCase {
    name: String,
    #[serde(default = "one")]
    scale: f64,
    #[serde(default)]
    start: f64,
    #[serde(default = "one")]
    end: f64,
}

pub(super) fn one() -> f64 {
    1.0
}

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

pub(super) fn checkpoint(model: &str) -> PathBuf {
    fixtures().join(if model == "sdxl" { "sdxl" } else { "sd/sd15" })
}

/// A copy of a model's checkpoint, perhaps with another UNet: the directory that has it.
pub(super) fn with_unet(model: &str, unet: Option<&Path>) -> TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    crate::engine::copy_directory(&checkpoint(model), copy.path());
    if let Some(unet) = unet {
        fs::remove_dir_all(copy.path().join("unet")).expect("removes");
        crate::engine::copy_directory(unet, &copy.path().join("unet"));
    }
    copy
}

/// What the oracle drew for a net, in this size.
pub(super) fn control_image(reference: &Reference, name: &str, width: u32, height: u32) -> RgbImage {
    let drawn = bytes(reference.get(&format!("control/{name}/{width}x{height}")));
    RgbImage::from_raw(width, height, drawn).expect("an image")
}

impl Steered {
    /// Without image prompts. `reference`: has what the ControlNets look at.
    pub(super) fn request(&self, reference: &Reference) -> GenerateRequest {
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
            start: control.start,
            end: control.end,
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
            image_prompts: vec![],
            strength: self.strength.unwrap_or(1.0),
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            scheduler: self.scheduler,
            sampling: Sampling::default(),
            mode: None,
            width_px: self.width,
            height_px: self.height,
            seeds: (self.seed..self.seed + self.count).collect(),
        }
    }
}
