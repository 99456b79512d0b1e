//! ControlNets of a manifest: their files are brought and verified, and `atelier doctor`'s part is in doctor/machine.rs.

use super::companion::{Companion, pins};
use super::files_of;
use crate::servers::hub::REPOSITORY;

const DIRECTORY: &str = "controlnet/canny/diffusion_pytorch_model.safetensors";
const FILE: &str = "controlnet/depth/depth_original.safetensors";

#[tokio::test]
async fn a_controlnets_files_are_brought_verified_and_looked_at() {
    // One repository for all: what nobody names of it stays there.
    let mut files = files_of("tests/fixtures/sd/sd15");
    files.extend(files_of("tests/fixtures/controlnets/sd15/canny"));
    files.extend(files_of("tests/fixtures/controlnets/sd15").into_iter().filter(|(path, _)| !path.contains('/')));
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
    let nets = format!(
        "controlnets:\n  - {{name: canny, weights: controlnet/canny, image: canny}}\n  - {{name: depth, weights: {FILE}, image: depth}}\n"
    );
    let sources = format!(
        "source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  controlnet/depth: {{hub: {REPOSITORY}}}\n  controlnet/canny:\n    hub: \
         {REPOSITORY}\n"
    );
    let companion = Companion::new("sd15", format!("{manifest}\n{nets}{sources}"), &files).await;

    let (pulled, text) = companion.run("pull").await;
    assert!(
        pulled && companion.has(DIRECTORY) && companion.has("controlnet/canny/config.json") && companion.has(FILE),
        "{text}"
    );
    assert!(!companion.has("controlnet/canny/model_index.json") && !companion.has("controlnet/depth/config.json"), "{text}");

    companion.pin(pins(&text, "controlnet/canny"));
    let (right, text) = companion.run("verify").await;
    assert!(!right && text.contains("depth_original.safetensors: there, and the manifest has no checksum"), "{text}");
    companion.verify_damaged(DIRECTORY).await;
}
