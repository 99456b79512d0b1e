//! The segmenter of a manifest: its files are brought and verified, and `atelier doctor`'s part is in doctor/machine.rs.

use std::fs;

use super::command::{atelier, output, printed};
use super::{files_of, hub_of};
use crate::servers::hub::REPOSITORY;

#[tokio::test]
async fn the_files_of_a_segmenter_are_brought_and_verified() {
    let mut files = files_of("models/tiny-edit");
    files.extend(files_of("tests/fixtures/segmenter"));
    let hub = hub_of(&files).await;
    let directory = tempfile::tempdir().expect("a directory");
    let models = directory.path().join("models");
    fs::create_dir(&models).expect("a directory");
    let write_manifest = |pins: &str| {
        let segmenter = "segmenter: {directory: masks/clothes, licence: CC0-1.0}\n";
        let sources = format!("source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  masks:\n    hub: {REPOSITORY}\n{pins}");
        let manifest = include_str!("../../../models/tiny-edit.yaml");
        fs::write(models.join("edit.yaml"), format!("{manifest}\n{segmenter}{sources}")).expect("writes");
    };
    let run = async |arguments: &[&str]| {
        let mut command = atelier(directory.path(), &hub, arguments);
        command.env("ATELIER_MODEL", "edit");
        let ended = output(command).await;
        (ended.status.success(), printed(&ended))
    };
    write_manifest("");
    let (pulled, text) = run(&["pull"]).await;
    let file = models.join("masks/clothes/model.safetensors");
    assert!(pulled && file.is_file(), "{text}");
    assert!(
        models.join("masks/clothes/config.json").is_file() && models.join("masks/clothes/preprocessor_config.json").is_file()
    );
    assert!(!models.join("masks/oblong").exists(), "what nobody names stays there");
    let (_, pins) = text.split_once("put this under `additional_sources: masks:`\n").expect("its pins");
    write_manifest(pins.split("\nso that").next().expect("until the next"));
    let mut bytes = fs::read(&file).expect("there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).expect("writes");
    let (right, text) = run(&["verify"]).await;
    assert!(!right && text.contains("clothes/model.safetensors: differs"), "{text}");
}
