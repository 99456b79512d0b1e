//! Upscalers of a manifest: their files are brought and verified, and `atelier doctor`'s part is in doctor/machine.rs.

use std::fs;

use super::command::{atelier, output, printed};
use super::{files_of, hub_of};
use crate::servers::hub::REPOSITORY;

#[tokio::test]
async fn an_upscalers_file_is_brought_and_verified() {
    let mut files = files_of("tests/fixtures/sd/sd15");
    files.extend(files_of("tests/fixtures/upscalers"));
    let hub = hub_of(&files).await;
    let directory = tempfile::tempdir().expect("a directory");
    let models = directory.path().join("models");
    fs::create_dir(&models).expect("a directory");
    let write_manifest = |pins: &str| {
        let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
        let upscalers = "upscalers:\n  - {name: x4, factor: 4, weights: upscalers/x4.safetensors, licence: BSD-3-Clause}\n";
        let sources =
            format!("source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  upscalers:\n    hub: {REPOSITORY}\n{pins}");
        fs::write(models.join("sd15.yaml"), format!("{manifest}\n{upscalers}{sources}")).expect("writes");
    };
    let run = async |arguments: &[&str]| {
        let ended = output(atelier(directory.path(), &hub, arguments)).await;
        (ended.status.success(), printed(&ended))
    };
    write_manifest("");
    let (pulled, text) = run(&["pull"]).await;
    let file = models.join("upscalers/x4.safetensors");
    assert!(pulled && file.is_file() && !models.join("upscalers/x2.safetensors").exists(), "{text}");
    let (_, pins) = text.split_once("put this under `additional_sources: upscalers:`\n").expect("its pins");
    write_manifest(pins.split("\nso that").next().expect("until the next"));
    let mut bytes = fs::read(&file).expect("there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).expect("writes");
    let (right, text) = run(&["verify"]).await;
    assert!(!right && text.contains("x4.safetensors: differs"), "{text}");
}
