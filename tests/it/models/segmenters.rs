//! The segmenter of a manifest: its files are brought and verified, and `atelier doctor`'s part is in doctor/machine.rs.

use super::companion::{Companion, pins};
use super::files_of;
use crate::servers::hub::REPOSITORY;

#[tokio::test]
async fn the_files_of_a_segmenter_are_brought_and_verified() {
    let mut files = files_of("models/tiny-edit");
    files.extend(files_of("tests/fixtures/segmenter"));
    let bundled = include_str!("../../../models/tiny-edit.yaml");
    let manifest = bundled.replace("directory: tiny-segmenter", "directory: masks/clothes");
    let sources = format!("source: {{hub: {REPOSITORY}}}\nadditional_sources:\n  masks:\n    hub: {REPOSITORY}\n");
    let companion = Companion::new("edit", format!("{manifest}\n{sources}"), &files).await;
    let (pulled, text) = companion.run("pull").await;
    for file in ["model.safetensors", "config.json", "preprocessor_config.json"] {
        assert!(pulled && companion.has(&format!("masks/clothes/{file}")), "{text}");
    }
    assert!(!companion.has("masks/oblong"), "what nobody names stays there");
    companion.pin(pins(&text, "masks"));
    companion.verify_damaged("masks/clothes/model.safetensors").await;
}
