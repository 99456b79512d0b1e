//! `atelier models pack` as a process of its own: what it prints is what the manifest needs, and a kill leaves nothing that loads.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;

use super::command::printed;
use crate::servers::DEADLINE;

const PACKED: &str = "atelier.safetensors";
const PART: &str = ".atelier.safetensors.part";

/// A directory with the small checkpoint and a manifest of it.
fn stage() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sd/sd15");
    copy_directory(&fixture, &directory.path().join("models/sd15"));
    write_manifest(directory.path(), "checkpoint: sd15");
    directory
}

/// With all that is in it.
fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

fn write_manifest(directory: &Path, keys: &str) {
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", keys);
    fs::write(directory.join("models/sd15.yaml"), manifest).expect("writes");
}

fn atelier(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.arg("models").args(arguments).current_dir(directory).env_clear().env("ATELIER_MODEL", "sd15");
    command
}

fn run(directory: &Path, arguments: &[&str]) -> (bool, String) {
    let output: Output = atelier(directory, arguments).output().expect("runs");
    (output.status.success(), printed(&output))
}

#[test]
fn what_is_printed_makes_the_manifest_one_of_the_packed_directory() {
    let directory = stage();
    let (packed, text) = run(directory.path(), &["pack", "--dtype", "f16"]);
    assert!(packed, "{text}");
    let file = directory.path().join("models/sd15-f16").join(PACKED);
    let bytes = fs::metadata(&file).expect("there").len();
    assert!(text.contains(" tensors as f16, ") && text.contains(&format!(" {bytes} bytes, in ")), "{text}");
    let (_, keys) = text.split_once("where you keep it there)\n").expect("the keys");
    let checksum = atelier::models::file::Checksum::of_file(&file).expect("reads");
    assert!(keys.contains(&format!("\n    {PACKED}: {checksum}\n")), "{keys}");

    write_manifest(directory.path(), keys);
    fs::rename(directory.path().join("models/sd15"), directory.path().join("elsewhere")).expect("moves");
    let (verified, text) = run(directory.path(), &["verify"]);
    assert!(verified && text.contains("sd15: 10 of 10 files are right"), "{text}");
    assert!(run(directory.path(), &["pull"]).1.contains("10 files are right, 0 of them pulled now"));
    let (_, listed) = run(directory.path(), &["list"]);
    assert!(listed.contains("10 of 10 files there, packed  from sd15-f16"), "{listed}");

    // Of another place the file is chosen like the weights that it stands for.
    write_manifest(directory.path(), "checkpoint: brought\nsource: {directory: sd15-f16}");
    let (pulled, text) = run(directory.path(), &["pull"]);
    assert!(pulled && text.contains("10 files are right, 10 of them pulled now"), "{text}");
    let (packed, text) = run(directory.path(), &["pack", "--dtype", "f32", "--to", "models/whole"]);
    assert!(packed && text.contains("checkpoint: whole\n"), "a packed directory is a checkpoint like any other: {text}");
    let (packed, text) = run(directory.path(), &["pack", "--dtype", "f32", "--to", "outside"]);
    assert!(packed && text.contains("outside into ") && text.contains("checkpoint: outside\n"), "{text}");
}

#[test]
fn what_is_not_packed_is_reported_in_words() {
    let directory = stage();
    let refused = |arguments: &[&str], words: &str| {
        let (packed, text) = run(directory.path(), arguments);
        assert!(!packed && text.contains(words), "{arguments:?}: {text}");
    };
    refused(&["pack"], "--dtype");
    refused(&["pack", "--dtype", "fp8"], "[possible values: f32, f16, bf16]");
    refused(&["pack", "nothing", "--dtype", "f32"], "models/nothing.yaml");
    refused(&["pack", "--dtype", "f32", "--to", "models/sd15"], "is the checkpoint itself, which stays as it is");
    let edit = include_str!("../../../models/qwen-image-edit-2511.yaml");
    fs::write(directory.path().join("models/edit.yaml"), edit).expect("writes");
    refused(&["pack", "edit", "--dtype", "bf16"], "family qwen-image-edit is not packed");
    fs::remove_file(directory.path().join("models/sd15/vae/diffusion_pytorch_model.safetensors")).expect("removes");
    refused(&["pack", "--dtype", "f32"], "has none of diffusion_pytorch_model.safetensors");
    assert!(!directory.path().join("models/sd15-f32").exists(), "nothing is begun that cannot be ended");
    fs::remove_dir_all(directory.path().join("models/sd15")).expect("removes");
    refused(&["pack", "--dtype", "f32"], "bring it with `atelier models pull sd15`");
}

/// A vocabulary that takes a while to be written.
fn with_many_words(checkpoint: &Path) {
    const WORDS: usize = 4_000_000;
    let weights = checkpoint.join("text_encoder/model.safetensors");
    let mut tensors: HashMap<String, Tensor> = candle_core::safetensors::load(&weights, &Device::Cpu).expect("loads");
    let words = tensors.keys().find(|name| name.ends_with("token_embedding.weight")).expect("has words").clone();
    let width = tensors[&words].dim(1).expect("a matrix");
    tensors.insert(words, Tensor::zeros((WORDS, width), DType::F16, &Device::Cpu).expect("zeros"));
    candle_core::safetensors::save(&tensors, &weights).expect("saves");
    let config = checkpoint.join("text_encoder/config.json");
    let text = fs::read_to_string(&config).expect("reads").replace("\"vocab_size\": 569", &format!("\"vocab_size\": {WORDS}"));
    fs::write(config, text).expect("writes");
}

#[test]
fn a_pack_that_is_killed_leaves_nothing_that_loads() {
    let directory = stage();
    with_many_words(&directory.path().join("models/sd15"));
    let packed = directory.path().join("models/sd15-f32");
    let mut packing = atelier(directory.path(), &["pack", "--dtype", "f32"]).stdout(Stdio::null()).spawn().expect("starts");
    let deadline = Instant::now() + DEADLINE;
    while !fs::metadata(packed.join(PART)).is_ok_and(|about| about.len() > 1 << 20) {
        assert!(packing.try_wait().expect("a child").is_none() && Instant::now() < deadline, "it did not begin to write");
        std::thread::sleep(Duration::from_millis(1));
    }
    packing.kill().expect("killed");
    assert!(!packing.wait().expect("ended").success());
    assert!(packed.join(PART).exists() && !packed.join(PACKED).exists(), "killed while it was written");

    write_manifest(directory.path(), "checkpoint: sd15-f32");
    let (again, text) = run(directory.path(), &["pack", "--dtype", "f32", "--to", "models/other"]);
    assert!(!again && text.contains("text_encoder: has none of"), "what is there is no checkpoint: {text}");
    write_manifest(directory.path(), "checkpoint: sd15");
    let (again, text) = run(directory.path(), &["pack", "--dtype", "f32"]);
    assert!(again && packed.join(PACKED).exists() && !packed.join(PART).exists(), "{text}");
}
