//! IP-Adapters of a manifest: their files are brought and verified; `atelier doctor`'s part is in doctor/machine.rs.

use std::fs;
use std::path::Path;

use super::command::{atelier, output, printed};
use super::{files_of, hub_of};
use crate::servers::hub::{Hub, REPOSITORY};

const PLUS: &str = "ip-adapter/sd15/plus.safetensors";
const ENCODER: &str = "ip-adapter/image_encoder/model.safetensors";

/// `pins`: what a pull printed for the directory `ip-adapter`.
fn write_manifest(directory: &Path, pins: &str) {
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
    let adapters = "ip_adapters:\n  - {name: plain, weights: ip-adapter/sd15/plain.safetensors, image_encoder: ip-adapter/image_encoder}\n  \
                    - {name: plus, weights: ip-adapter/sd15/plus.safetensors, image_encoder: ip-adapter/image_encoder}\n";
    let sources = format!("source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  ip-adapter:\n    hub: {REPOSITORY}\n{pins}");
    fs::write(directory.join("models/sd15.yaml"), format!("{manifest}\n{adapters}{sources}")).expect("writes");
}

async fn run(directory: &Path, hub: &Hub, arguments: &[&str]) -> (bool, String) {
    let ended = output(atelier(directory, hub, arguments)).await;
    (ended.status.success(), printed(&ended))
}

#[tokio::test]
async fn the_files_of_an_ip_adapter_are_brought_verified_and_looked_at() {
    // One repository for all: what nobody names of it stays there.
    let mut files = files_of("tests/fixtures/sd/sd15");
    files.extend(files_of("tests/fixtures/ip_adapters"));
    let hub = hub_of(&files).await;
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("models")).expect("a directory");
    write_manifest(directory.path(), "");
    let there = |file: &str| directory.path().join("models").join(file).is_file();

    let (pulled, text) = run(directory.path(), &hub, &["pull"]).await;
    assert!(pulled && there(PLUS) && there("ip-adapter/sd15/plain.safetensors") && there(ENCODER), "{text}");
    assert!(there("ip-adapter/image_encoder/config.json"), "{text}");
    assert!(!there("ip-adapter/sdxl/plain.safetensors") && !there("ip-adapter/cases.json"), "{text}");
    let (_, pins) = text.split_once("put this under `additional_sources: ip-adapter:`\n").expect("the pins");
    let pins = pins.split("\nso that").next().expect("until the next");

    let (right, text) = run(directory.path(), &hub, &["verify"]).await;
    assert!(!right && text.contains("plus.safetensors: there, and the manifest has no checksum"), "{text}");
    write_manifest(directory.path(), pins);
    let weights = directory.path().join("models").join(ENCODER);
    let mut bytes = fs::read(&weights).expect("there");
    bytes[9000] ^= 1;
    fs::write(&weights, bytes).expect("writes");
    let (_, text) = run(directory.path(), &hub, &["verify"]).await;
    assert!(text.contains("image_encoder/model.safetensors: differs"), "{text}");
    assert!(!text.contains("plus.safetensors: differs"), "{text}");
}
