//! What a manifest names next to its checkpoint, brought from one hub and verified by `atelier models` as a process of its own.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::command::{atelier, output, printed};
use super::hub_of;
use crate::servers::hub::Hub;

/// A directory with a model's manifest in it, and the hub that has its files.
pub(super) struct Companion {
    directory: TempDir,
    hub: Hub,
    model: &'static str,
    /// With the pins of its last source behind it.
    manifest: String,
}

impl Companion {
    /// `files`: those of the hub. What nobody names of it stays there.
    pub(super) async fn new(model: &'static str, manifest: String, files: &[(String, Vec<u8>)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("models")).expect("a directory");
        let companion = Self { directory, hub: hub_of(files).await, model, manifest };
        companion.pin("");
        companion
    }

    /// `pins`: what a pull has printed.
    pub(super) fn pin(&self, pins: &str) {
        fs::write(self.file(&format!("{}.yaml", self.model)), format!("{}{pins}", self.manifest)).expect("writes");
    }

    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join("models").join(path)
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.file(path).exists()
    }

    /// Whether `atelier models COMMAND` succeeds, and what it prints.
    pub(super) async fn run(&self, command: &str) -> (bool, String) {
        let mut command = atelier(self.directory.path(), &self.hub, &[command]);
        command.env("ATELIER_MODEL", self.model);
        let ended = output(command).await;
        (ended.status.success(), printed(&ended))
    }

    /// Changes a byte of a file that was brought and is pinned, and sees `verify` name it; returns all that is said.
    pub(super) async fn verify_damaged(&self, path: &str) -> String {
        let mut bytes = fs::read(self.file(path)).expect("there");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(self.file(path), bytes).expect("writes");
        let (right, text) = self.run("verify").await;
        let name = path.rsplit('/').next().expect("a name");
        assert!(!right && text.contains(&format!("{name}: differs")), "{text}");
        text
    }
}

/// What a pull says is to be put into the manifest, of this directory.
pub(super) fn pins<'a>(text: &'a str, directory: &str) -> &'a str {
    let (_, pins) = text.split_once(&format!("put this under `additional_sources: {directory}:`\n")).expect("its pins");
    pins.split("\nso that").next().expect("until the next")
}
