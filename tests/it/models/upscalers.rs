//! Upscalers of a manifest: their files are brought and verified, and `atelier doctor`'s part is in doctor/machine.rs.

use super::companion::{Companion, pins};
use super::files_of;
use crate::servers::hub::REPOSITORY;

#[tokio::test]
async fn an_upscalers_file_is_brought_and_verified() {
    let mut files = files_of("tests/fixtures/sd/sd15");
    files.extend(files_of("tests/fixtures/upscalers"));
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
    let upscalers = "upscalers:\n  - {name: x4, factor: 4, weights: upscalers/x4.safetensors, licence: BSD-3-Clause}\n";
    let sources = format!("source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  upscalers:\n    hub: {REPOSITORY}\n");
    let companion = Companion::new("sd15", format!("{manifest}\n{upscalers}{sources}"), &files).await;
    let (pulled, text) = companion.run("pull").await;
    assert!(pulled && companion.has("upscalers/x4.safetensors") && !companion.has("upscalers/x2.safetensors"), "{text}");
    companion.pin(pins(&text, "upscalers"));
    companion.verify_damaged("upscalers/x4.safetensors").await;
}
