//! Models brought from a hub, a bucket or a directory, verified, interrupted, gone on with.

mod additional;
mod command;
mod companion;
mod controlnets;
mod gguf;
mod hub;
mod ip_adapters;
mod pack;
mod places;
mod sdxl;
mod segmenters;
mod upscalers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use atelier::models::download::RetryPolicy;
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

/// Every file in a directory of the repository and the directories in it.
fn files_of(directory: &str) -> Vec<(String, Vec<u8>)> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
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

fn plan(directory: &Path, files: BTreeMap<FilePath, Option<Checksum>>) -> Plan {
    let place = Place::Hub { repository: REPOSITORY.into(), revision: "main".into() };
    Plan {
        source: Source { place, variant: None, files },
        directory: directory.to_owned(),
        weights: None,
        unread: Vec::new(),
        offline: false,
        retry_policy: RetryPolicy { attempts: 3, initial_backoff: Duration::from_millis(1) },
    }
}

/// A plan of some files whose checksums the manifest does not have.
fn only(directory: &Path, files: &[&str]) -> Plan {
    plan(directory, files.iter().map(|file| (path(file), None)).collect())
}

fn impatient(plan: Plan) -> Plan {
    Plan { retry_policy: RetryPolicy { attempts: 1, initial_backoff: Duration::ZERO }, ..plan }
}

async fn pull_hub(hub: &Hub, plan: &Plan) -> Result<Pulled, ModelError> {
    let settings = hub.settings();
    let origin = Origin::new(&plan.source.place, Path::new("."), &atelier::store::Settings::default(), &settings).await;
    pull(plan, &origin.expect("an origin"), &|_| ()).await
}

/// Pulls, and returns what was reported of `file`'s bytes.
async fn pull_watched(origin: &Origin, plan: &Plan) -> (Result<Pulled, ModelError>, Vec<u64>) {
    let seen = Mutex::new(Vec::new());
    let pulled = pull(plan, origin, &|step| {
        if let Step::Begins { at_bytes: bytes, .. } | Step::At { bytes } = step {
            seen.lock().unwrap().push(*bytes);
        }
    })
    .await;
    (pulled, seen.into_inner().unwrap())
}

fn how(pulled: &Pulled, file: &str) -> How {
    pulled.files[&path(file)].1
}

/// Names of the hidden halves next to `file`.
fn parts(directory: &Path, file: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path(file).under(directory).parent().expect("a directory")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "part")).collect()
}
