//! A try-on model whose modes take files of another repository: what is brought is what the modes need that are loaded.

use std::fs;
use std::path::Path;

use super::command::{atelier, output, printed};
use super::{files_of, hub_of};
use crate::servers::hub::{Hub, REPOSITORY};

const OWN: &str = "edit/transformer/diffusion_pytorch_model.safetensors";
const FP8: &str = "lightning/fp8-lightning-4steps.safetensors";
const LORA: &str = "lightning/lightning-4steps.safetensors";

/// `pins`: what a pull printed for the directory `lightning`.
fn write_manifest(directory: &Path, pins: &str) {
    let bundled = include_str!("../../../models/tiny-edit.yaml").replace("file: tiny-edit/", "file: lightning/");
    let bundled = bundled.replace("transformer: tiny-edit/", "transformer: lightning/");
    let bundled = bundled.replace("checkpoint: tiny-edit", "checkpoint: edit");
    let sources = format!("source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  lightning:\n    hub: {REPOSITORY}\n{pins}");
    fs::write(directory.join("models/edit.yaml"), format!("{bundled}{sources}")).expect("writes");
}

/// Runs `atelier models` with these modes loaded, the first by default; returns whether it succeeded, and what it printed.
async fn run(directory: &Path, hub: &Hub, modes: &[&str], arguments: &[&str]) -> (bool, String) {
    let mut command = atelier(directory, hub, arguments);
    command.env("ATELIER_MODEL", "edit").env("ATELIER__MODEL__DEFAULT_MODE", modes[0]);
    fs::write(directory.join("config.yaml"), format!("model: {{modes: [{}]}}\n", modes.join(", "))).expect("writes");
    let ended = output(command).await;
    (ended.status.success(), printed(&ended))
}

#[tokio::test]
async fn each_mode_has_its_files_brought_and_no_others() {
    let hub = hub_of(&files_of("models/tiny-edit")).await;
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("models")).expect("a directory");
    write_manifest(directory.path(), "");
    let there = |file: &str| directory.path().join("models").join(file).is_file();

    let (pulled, text) = run(directory.path(), &hub, &["fp8"], &["pull"]).await;
    assert!(pulled && text.contains("put this under `source:`"), "{text}");
    assert!(there(FP8) && there("edit/transformer/config.json") && there("edit/vae/config.json"), "{text}");
    assert!(!there(OWN) && !there(LORA), "8-bit weights replace the checkpoint's own, and no one asked for the LoRA: {text}");
    let (_, pins) =
        text.split_once("put this under `additional_sources: lightning:`\n").expect("the pins of what lies next to");

    let (pulled, text) = run(directory.path(), &hub, &["lora", "fp8"], &["pull"]).await;
    assert!(pulled && there(OWN) && there(LORA), "{text}");
    let (_, listed) = run(directory.path(), &hub, &["fp8"], &["list"]).await;
    assert!(listed.contains("there, not pinned  from hub ada/images@main, 1 of 1 files of its modes there"), "{listed}");

    write_manifest(directory.path(), pins);
    let fp8 = directory.path().join("models").join(FP8);
    let (right, text) = run(directory.path(), &hub, &["fp8"], &["verify"]).await;
    assert!(right && text.contains("edit: 1 of 1 files are right"), "{text}");
    let mut bytes = fs::read(&fp8).expect("there");
    bytes[5000] ^= 1;
    fs::write(&fp8, bytes).expect("writes");
    let (right, text) = run(directory.path(), &hub, &["fp8"], &["verify"]).await;
    assert!(!right && text.contains("fp8-lightning-4steps.safetensors: differs"), "{text}");
    let (pulled, _) = run(directory.path(), &hub, &["fp8"], &["pull"]).await;
    let (right, text) = run(directory.path(), &hub, &["fp8"], &["verify"]).await;
    assert!(pulled && right, "brought again: {text}");
}
