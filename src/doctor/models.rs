//! Whether the model's files are there, whole, and those that its manifest means.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::aside;
use super::finding::Finding;
use crate::config::manifest::{Manifest, ModeWeights};
use crate::config::{Config, Environment};
use crate::models::{FileCheck, Plan, verify};
use crate::start::models::plans;
use crate::start::{family, segmenter, upscalers};
use atelier_engine::tensor_file::{self, PACKED};

const CHECK: &str = "model";
/// Bytes a second that a slow disk gives; hashing has so much more time.
const SLOW_DISK: u64 = 50_000_000;
/// Directories in directories; deeper there are only links in circles.
const DEEPEST: u32 = 4;

pub(super) async fn check(config: &Config, environment: &Environment, quick: bool, limit: Duration) -> Finding {
    let name = config.model.name.as_str().to_owned();
    let manifest = match config.manifest(environment) {
        Ok(manifest) => manifest,
        Err(error) => {
            return Finding::fail(
                CHECK,
                error.to_string(),
                "correct the manifest, or name another model (model.name, ATELIER_MODEL)",
            );
        }
    };
    let bring = match &manifest.source {
        Some(_) => format!("bring it again: atelier models pull {name}"),
        None => format!("put its directory at {} again, whole", manifest.checkpoint.display()),
    };
    let weights = match files(&manifest, config) {
        Ok(weights) => weights,
        Err(problem) => return Finding::fail(CHECK, format!("{name}: {problem}"), bring),
    };
    if let Err(problem) = family::check(&manifest) {
        let how = format!("correct the manifest, {}, or {bring}", manifest.file.display());
        return Finding::fail(CHECK, format!("{name}: {problem}"), how);
    }
    if let Err(problem) = family::check_weights(&manifest, &config.model.modes()) {
        return Finding::fail(CHECK, format!("{name}: {problem}"), bring);
    }
    if let Err(problem) = family::check_controlnets(&manifest) {
        let how = format!("correct controlnets in {}, or take a ControlNet of the model's family", manifest.file.display());
        return Finding::fail(CHECK, format!("{name}: {problem}"), how);
    }
    if let Err(problem) = family::check_ip_adapters(&manifest) {
        let how = format!("correct ip_adapters in {}, or take an IP-Adapter of the model's family", manifest.file.display());
        return Finding::fail(CHECK, format!("{name}: {problem}"), how);
    }
    if let Err(problem) = upscalers::check_files(&manifest) {
        let how = format!("correct upscalers in {}, or take another file", manifest.file.display());
        return Finding::fail(CHECK, format!("{name}: {problem}"), how);
    }
    if let Err(problem) = segmenter::check_files(&manifest) {
        let how = format!("correct segmenter in {}, or take another one", manifest.file.display());
        return Finding::fail(CHECK, format!("{name}: {problem}"), how);
    }
    let bytes: u64 = weights.iter().map(|(_, bytes)| bytes).sum();
    let mut pinned = if quick { Vec::new() } else { plans(config, environment, &config.model.name, true).unwrap_or_default() };
    pinned.retain(|plan| !plan.source.files.is_empty());
    let limit = limit + Duration::from_secs(if pinned.is_empty() { 0 } else { bytes / SLOW_DISK });
    let began = Instant::now();
    let work = aside(move || judge(&weights, &pinned));
    match tokio::time::timeout(limit, work).await {
        Err(_) | Ok(None) => Finding::late(CHECK, limit),
        Ok(Some(Err(problem))) => Finding::fail(CHECK, format!("{name}: {problem}"), bring),
        Ok(Some(Ok(how))) => {
            let took = began.elapsed().as_secs_f32();
            Finding::ok(CHECK, format!("{name}: {} MiB of weights, {how}, in {took:.1} s", bytes >> 20))
        }
    }
}

/// Every weight file that is loaded, with its bytes.
///
/// # Errors
/// What is missing.
pub(super) fn files(manifest: &Manifest, config: &Config) -> Result<Vec<(PathBuf, u64)>, String> {
    let directory = &manifest.checkpoint;
    let mut found = Vec::new();
    let unreadable = |error: io::Error| format!("{}: {error}", directory.display());
    let packed = directory.join(PACKED);
    if packed.is_file() {
        let bytes = fs::metadata(&packed).map_err(unreadable)?.len();
        found.push((packed, bytes));
    } else {
        collect(directory, DEEPEST, &mut found).map_err(unreadable)?;
    }
    let modes = config.model.modes();
    let beside = manifest.modes.among(&modes).flat_map(ModeWeights::files);
    for file in manifest.weights.iter().chain(&manifest.text_encoder).chain(beside) {
        let about = fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?;
        found.push((file.clone(), about.len()));
    }
    for net in &manifest.controlnets {
        let missing = |error: io::Error| format!("ControlNet {}: {}: {error}", net.name.as_str(), net.weights.display());
        let about = fs::metadata(&net.weights).map_err(missing)?;
        if about.is_dir() {
            collect(&net.weights, 0, &mut found).map_err(missing)?;
        } else {
            found.push((net.weights.clone(), about.len()));
        }
    }
    for adapter in &manifest.ip_adapters {
        let missing =
            |path: &Path, error: io::Error| format!("IP-Adapter {}: {}: {error}", adapter.name.as_str(), path.display());
        let about = fs::metadata(&adapter.weights).map_err(|error| missing(&adapter.weights, error))?;
        found.push((adapter.weights.clone(), about.len()));
        let encoder = &adapter.image_encoder;
        collect(encoder, 0, &mut found).map_err(|error| missing(encoder, error))?;
    }
    for upscaler in &manifest.upscalers {
        let about = fs::metadata(&upscaler.weights);
        let about =
            about.map_err(|error| format!("upscaler {}: {}: {error}", upscaler.name.as_str(), upscaler.weights.display()))?;
        found.push((upscaler.weights.clone(), about.len()));
    }
    if let Some(segmenter) = &manifest.segmenter {
        let directory = &segmenter.directory;
        collect(directory, 0, &mut found).map_err(|error| format!("segmenter: {}: {error}", directory.display()))?;
    }
    found.sort();
    found.dedup();
    if found.is_empty() { Err(format!("{}: has no weights", directory.display())) } else { Ok(found) }
}

fn collect(directory: &Path, deeper: u32, found: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let about = fs::metadata(&path)?;
        if about.is_dir() && deeper > 0 {
            collect(&path, deeper - 1, found)?;
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push((path, about.len()));
        }
    }
    Ok(())
}

/// How it was looked at, or what is wrong first.
fn judge(weights: &[(PathBuf, u64)], pinned: &[Plan]) -> Result<String, String> {
    for (file, _) in weights {
        tensor_file::check(file).map_err(|error| error.to_string())?;
    }
    if pinned.is_empty() {
        return Ok(format!("{} files as long as they must be, not hashed", weights.len()));
    }
    let mut file_checks = Vec::new();
    for plan in pinned {
        file_checks.extend(verify(plan).map_err(|error| error.to_string())?);
    }
    for (path, file_check) in &file_checks {
        match file_check {
            FileCheck::Missing => return Err(format!("{path} is missing")),
            FileCheck::Differs { found, expected } => {
                return Err(format!("{path} differs: it has the SHA-256 {found}, and must have {expected}"));
            }
            FileCheck::Right | FileCheck::Unverified => {}
        }
    }
    let unverified = file_checks.iter().filter(|(_, file_check)| *file_check == FileCheck::Unverified).count();
    let verified = file_checks.len() - unverified;
    Ok(if unverified == 0 {
        format!("{verified} files hashed")
    } else {
        format!("{verified} files hashed, {unverified} without a checksum")
    })
}
