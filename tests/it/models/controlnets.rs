//! ControlNets of a manifest: their files are brought and verified, and `atelier doctor`'s part is in doctor/machine.rs.

use std::fs;
use std::path::Path;

use super::command::{atelier, output, printed};
use super::{files_of, hub_of};
use crate::servers::hub::{Hub, REPOSITORY};

const DIRECTORY: &str = "controlnet/canny/diffusion_pytorch_model.safetensors";
const FILE: &str = "controlnet/depth/depth_original.safetensors";

/// `pins`: what a pull printed for the directory `controlnet/canny`.
fn write_manifest(directory: &Path, pins: &str) {
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
    let nets = format!(
        "controlnets:\n  - {{name: canny, weights: controlnet/canny, image: canny}}\n  - {{name: depth, weights: {FILE}, image: depth}}\n"
    );
    let sources = format!(
        "source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  controlnet/depth: {{hub: {REPOSITORY}}}\n  controlnet/canny:\n    hub: \
         {REPOSITORY}\n{pins}"
    );
    fs::write(directory.join("models/sd15.yaml"), format!("{manifest}\n{nets}{sources}")).expect("writes");
}

async fn run(directory: &Path, hub: &Hub, arguments: &[&str]) -> (bool, String) {
    let ended = output(atelier(directory, hub, arguments)).await;
    (ended.status.success(), printed(&ended))
}

#[tokio::test]
async fn a_controlnets_files_are_brought_verified_and_looked_at() {
    // One repository for all: what nobody names of it stays there.
    let mut files = files_of("tests/fixtures/sd/sd15");
    files.extend(files_of("tests/fixtures/controlnets/sd15/canny"));
    files.extend(files_of("tests/fixtures/controlnets/sd15").into_iter().filter(|(path, _)| !path.contains('/')));
    let hub = hub_of(&files).await;
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("models")).expect("a directory");
    write_manifest(directory.path(), "");
    let there = |file: &str| directory.path().join("models").join(file).is_file();

    let (pulled, text) = run(directory.path(), &hub, &["pull"]).await;
    assert!(pulled && there(DIRECTORY) && there("controlnet/canny/config.json") && there(FILE), "{text}");
    assert!(!there("controlnet/canny/model_index.json") && !there("controlnet/depth/config.json"), "{text}");
    let (_, pins) = text.split_once("put this under `additional_sources: controlnet/canny:`\n").expect("the pins of one");
    let pins = pins.split("\nso that").next().expect("until the next");

    write_manifest(directory.path(), pins);
    let (right, text) = run(directory.path(), &hub, &["verify"]).await;
    assert!(!right && text.contains("depth_original.safetensors: there, and the manifest has no checksum"), "{text}");
    let weights = directory.path().join("models").join(DIRECTORY);
    let mut bytes = fs::read(&weights).expect("there");
    bytes[5000] ^= 1;
    fs::write(&weights, bytes).expect("writes");
    let (_, text) = run(directory.path(), &hub, &["verify"]).await;
    assert!(text.contains("diffusion_pytorch_model.safetensors: differs"), "{text}");
}
