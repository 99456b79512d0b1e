//! Models brought from a hub, a bucket or a folder, proven, interrupted, gone on with.

mod beside;
mod command;
mod hub;
mod pack;
mod places;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use atelier::models::download::Patience;
use atelier::models::file::{Checksum, FilePath};
use atelier::models::origin::Origin;
use atelier::models::source::{Place, Source};
use atelier::models::{How, ModelError, Plan, Pulled, Step, pull};
use sha2::{Digest as _, Sha256};

use crate::servers::hub::{Hub, REPOSITORY};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const RESUMED: How = How::Pulled { resumed: true };
const PULLED: How = How::Pulled { resumed: false };

/// Every file of the tiny checkpoint.
fn checkpoint() -> Vec<(String, Vec<u8>)> {
    files_of("tests/fixtures/sd/sd15")
}

/// Every file in a folder of the repository and the folders in it.
fn files_of(folder: &str) -> Vec<(String, Vec<u8>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(&root).expect("inside").to_str().expect("text").to_owned();
                files.push((name, std::fs::read(path).expect("reads")));
            }
        }
    }
    files
}

async fn hub_of(files: &[(String, Vec<u8>)]) -> Hub {
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    Hub::start(&files).await
}

fn path(text: &str) -> FilePath {
    FilePath::new(text).expect("a path")
}

fn checksum(bytes: &[u8]) -> Checksum {
    Checksum::of(Sha256::new_with_prefix(bytes))
}

fn plan(folder: &Path, files: BTreeMap<FilePath, Option<Checksum>>) -> Plan {
    let place = Place::Hub { repository: REPOSITORY.into(), revision: "main".into() };
    Plan {
        source: Source { place, variant: None, files },
        folder: folder.to_owned(),
        weights: None,
        unread: &[],
        offline: false,
        patience: Patience { attempts: 3, first_pause: Duration::from_millis(1) },
    }
}

/// A plan of some files whose checksums the manifest does not have.
fn only(folder: &Path, files: &[&str]) -> Plan {
    plan(folder, files.iter().map(|file| (path(file), None)).collect())
}

fn impatient(plan: Plan) -> Plan {
    Plan { patience: Patience { attempts: 1, first_pause: Duration::ZERO }, ..plan }
}

async fn pull_hub(hub: &Hub, plan: &Plan) -> Result<Pulled, ModelError> {
    let settings = hub.settings();
    let origin = Origin::new(&plan.source.place, Path::new("."), &atelier::store::Settings::default(), &settings).await;
    pull(plan, &origin.expect("an origin"), &|_| ()).await
}

/// Pulls, and returns what was told of `file`'s bytes.
async fn pull_watched(origin: &Origin, plan: &Plan) -> (Result<Pulled, ModelError>, Vec<u64>) {
    let seen = Mutex::new(Vec::new());
    let tell = |step: &Step<'_>| {
        if let Step::Begins { at_bytes: bytes, .. } | Step::At { bytes } = step {
            seen.lock().unwrap().push(*bytes);
        }
    };
    let pulled = pull(plan, origin, &tell).await;
    (pulled, seen.into_inner().unwrap())
}

fn how(pulled: &Pulled, file: &str) -> How {
    pulled.files[&path(file)].1
}

/// Names of the hidden halves beside `file`.
fn parts(folder: &Path, file: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path(file).under(folder).parent().expect("a folder")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "part")).collect()
}
