//! `atelier models`: lists the models there are manifests of, brings their files, proves them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};

use super::command::{all_named, files_key, line};
use super::family::large_encoder;
use super::pack;
use crate::config::manifest::{Kind, Manifest, ModeWeights};
use crate::config::segmenter::Segmenter;
use crate::config::{Config, Environment};
use crate::job::task::ModelName;
use crate::models::file::{Checksum, FilePath};
use crate::models::origin::Origin;
use crate::models::source::{Place, Source};
use crate::models::wanted::WITH_WEIGHTS;
use crate::models::{FileCheck, How, Plan, Pulled, Step, count, pull, verify};
use atelier_engine::tensor_file::PACKED;

/// What is read of an image classifier.
const CHECKER_FILES: [&str; 3] = ["config.json", "preprocessor_config.json", "model.safetensors"];

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Bring the files that a model's manifest names, or that its source has; what is right already is left alone.
    Pull {
        /// Name of a manifest [default: the models that config.yaml names]
        model: Option<String>,
        /// Fetch nothing: say what is missing
        #[arg(long)]
        offline: bool,
    },
    /// Write a Stable Diffusion checkpoint with all its weights in one file, converted once, so that it loads as fast as it is read.
    Pack(pack::Options),
    /// Show every manifest, what is there of its model, and where the rest comes from.
    List,
    /// Compare the files that are there with the checksums in the manifest.
    Verify {
        /// Name of a manifest [default: the models that config.yaml names]
        model: Option<String>,
    },
}

/// # Errors
/// When a manifest or a setting is wrong, or a file cannot be brought.
pub async fn run(options: Options, config: Option<&Path>, environment: &Environment) -> anyhow::Result<ExitCode> {
    let config = Config::load(config, environment)?;
    match options.command {
        Command::Pull { model, offline } => {
            for name in all_named(&config, model)? {
                pull_all(&config, environment, &name, offline).await?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Pack(options) => pack::run(options, &config, environment),
        Command::List => list(&config, environment),
        Command::Verify { model } => {
            let mut all_right = true;
            for name in all_named(&config, model)? {
                all_right &= verify_files(&config, environment, &name)?;
            }
            Ok(if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// What there is to do for a model: for its checkpoint, then for each directory next to it that has files of the modes that are loaded.
///
/// # Errors
/// When its manifest is wrong, or has no `source`.
pub fn plans(config: &Config, environment: &Environment, name: &ModelName, offline: bool) -> anyhow::Result<Vec<Plan>> {
    let manifest = config.manifest_of(name, environment)?;
    let modes: Vec<&ModeWeights> = manifest.modes.among(&config.model.modes()).collect();
    let elsewhere = elsewhere_of(&manifest, manifest.weights.as_ref());
    let is_flow = manifest.family.kind() == Kind::Flow;
    anyhow::ensure!(
        !is_flow || manifest.weights.is_none() || elsewhere.is_some(),
        "weights: of family {} it is the transformer alone, and must lie in one of additional_sources, to be brought",
        manifest.family.as_str()
    );
    anyhow::ensure!(
        manifest.text_encoder.is_none() || elsewhere_of(&manifest, manifest.text_encoder.as_ref()).is_some(),
        "text_encoder: must lie in one of additional_sources, to be brought"
    );
    let weights = if elsewhere.is_some() { None } else { weights_in_checkpoint(&manifest)? };
    let unread = unread(&manifest, &modes, elsewhere.is_some());
    let source = manifest.source.clone().with_context(|| {
        format!("{}: has no `source`; name where its files come from: hub, s3 or directory", manifest.file.display())
    })?;
    let offline = offline || config.hub.offline;
    let retry_policy = crate::models::download::RetryPolicy::default();
    let mut plans = vec![Plan { source, directory: manifest.checkpoint.clone(), weights, unread, offline, retry_policy }];
    for (directory, source) in &manifest.additional_sources {
        let directory = directory.under(manifest.directory());
        let checker = manifest.checker.iter().flat_map(|checker| CHECKER_FILES.map(|file| checker.directory.join(file)));
        let controlnets = manifest.controlnets.iter().flat_map(|net| listed(&net.weights, net.files(), &directory, source));
        let ip_adapters = manifest.ip_adapters.iter().flat_map(|adapter| {
            let encoder = listed(&adapter.image_encoder, adapter.encoder_files(), &directory, source);
            encoder.into_iter().chain([adapter.weights.clone()])
        });
        let named = modes
            .iter()
            .flat_map(|mode| mode.files())
            .chain(elsewhere)
            .chain(&manifest.text_encoder)
            .cloned()
            .chain(checker)
            .chain(controlnets);
        let upscalers = manifest.upscalers.iter().map(|upscaler| upscaler.weights.clone());
        let segmenter = manifest.segmenter.iter().flat_map(|segmenter| {
            let every_one = Segmenter::FILES.map(|file| segmenter.directory.join(file)).to_vec();
            listed(&segmenter.directory, every_one, &directory, source)
        });
        let named = named.chain(ip_adapters).chain(upscalers).chain(segmenter);
        let inside = named.filter_map(|file| Some(file.strip_prefix(&directory).ok()?.to_str()?.to_owned()));
        let files: BTreeMap<FilePath, Option<Checksum>> = inside
            .filter_map(|file| FilePath::new(&file).ok())
            .map(|file| (file.clone(), source.files.get(&file).copied().flatten()))
            .collect();
        if !files.is_empty() {
            let source = Source { files, ..source.clone() };
            plans.push(Plan { source, directory, weights: None, unread: Vec::new(), offline, retry_policy });
        }
    }
    Ok(plans)
}

/// Those that the source names of what lies at `path`, else those that `every_one` of its kind has.
fn listed(path: &Path, every_one: Vec<PathBuf>, directory: &Path, source: &Source) -> Vec<PathBuf> {
    let listed = source.files.keys().map(|file| file.under(directory)).filter(|file| file.starts_with(path));
    let listed: Vec<PathBuf> = listed.collect();
    if listed.is_empty() { every_one } else { listed }
}

/// The directories of a checkpoint whose weights nothing reads; `elsewhere`: whether one file outside of it has all of them, or of a flow the transformer.
fn unread(manifest: &Manifest, modes: &[&ModeWeights], elsewhere: bool) -> Vec<&'static str> {
    let is_flow = manifest.family.kind() == Kind::Flow;
    let reads_own = modes.is_empty() || modes.iter().any(|mode| mode.transformer.is_none());
    let encoder = manifest.text_encoder.as_ref().map(|_| large_encoder(manifest.family));
    match elsewhere {
        true if !is_flow => WITH_WEIGHTS.to_vec(),
        false if reads_own => encoder.into_iter().collect(),
        _ => ["transformer"].into_iter().chain(encoder).collect(),
    }
}

/// One file of weights, where a directory next to the checkpoint has it.
fn elsewhere_of<'a>(manifest: &Manifest, weights: Option<&'a PathBuf>) -> Option<&'a PathBuf> {
    let weights = weights?;
    let directories = manifest.additional_sources.keys().map(|directory| directory.under(manifest.directory()));
    directories.into_iter().any(|directory| weights.starts_with(directory)).then_some(weights)
}

/// The manifest names the one file with all weights next to its own place; a source has it under the checkpoint's directory.
fn weights_in_checkpoint(manifest: &Manifest) -> anyhow::Result<Option<FilePath>> {
    let Some(weights) = &manifest.weights else { return Ok(None) };
    let inside = weights.strip_prefix(&manifest.checkpoint).ok().and_then(Path::to_str);
    let inside =
        inside.context("weights: must lie in the checkpoint's directory, or in one of additional_sources, to be brought")?;
    FilePath::new(inside).map(Some).map_err(|problem| anyhow::anyhow!("weights: {problem}"))
}

async fn pull_all(config: &Config, environment: &Environment, name: &ModelName, offline: bool) -> anyhow::Result<()> {
    let directory = config.manifest_of(name, environment)?.directory().to_owned();
    let mut right = 0;
    let mut fresh = 0;
    let mut open = String::new();
    for (index, plan) in plans(config, environment, name, offline)?.iter().enumerate() {
        let origin = Origin::new(&plan.source.place, &directory, &config.store, &config.hub).await?;
        let screen = Screen::new();
        let pulled = pull(plan, &origin, &|step| screen.show(step)).await;
        screen.bar.finish_and_clear();
        let pulled = pulled?;
        right += pulled.files.len();
        fresh += pulled.files.values().filter(|(_, how)| *how != How::There).count();
        if let Some(keys) = pinning(&plan.source, &pulled) {
            let directory = plan.directory.strip_prefix(&directory).unwrap_or(&plan.directory).display();
            let (key, indent) =
                if index == 0 { ("source".into(), "") } else { (format!("additional_sources: {directory}"), "  ") };
            let _ = writeln!(open, "\nso that it stays this very model, put this under `{key}:`");
            for line in keys.lines() {
                let _ = writeln!(open, "{indent}{line}");
            }
        }
    }
    line(&format!("{}: {right} files are right, {fresh} of them pulled now", name.as_str()))?;
    if !open.is_empty() {
        line(open.trim_end())?;
    }
    Ok(())
}

/// The keys that pin what was pulled, where the manifest leaves something open.
fn pinning(source: &Source, pulled: &Pulled) -> Option<String> {
    let pinned = !source.files.is_empty() && source.files.values().all(Option::is_some);
    if pinned {
        return None;
    }
    let mut keys = String::new();
    if let (Place::Hub { .. }, Some(commit)) = (&source.place, &pulled.commit) {
        let _ = writeln!(keys, "  revision: {commit}");
    }
    keys.push_str(&files_key(pulled.files.iter().map(|(path, (checksum, _))| (path, checksum))));
    Some(keys)
}

/// A bar on a terminal, a line a file everywhere else.
struct Screen {
    bar: ProgressBar,
}

impl Screen {
    fn new() -> Self {
        let bar = if stderr().is_terminal() { ProgressBar::no_length() } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("  {msg} {bar:32.cyan/blue} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar }
    }

    fn show(&self, step: &Step<'_>) {
        match step {
            Step::Begins { path, at_bytes, bytes } => {
                self.bar.reset();
                self.bar.set_message(path.to_string());
                self.bar.set_length(bytes.unwrap_or_default());
                self.bar.set_position(*at_bytes);
            }
            Step::At { bytes } => self.bar.set_position(*bytes),
            Step::Ends { path, how } => {
                let what = match how {
                    How::There => "is there",
                    How::Pulled { resumed: false } => "pulled",
                    How::Pulled { resumed: true } => "pulled, went on with what was there",
                };
                self.bar.suspend(|| drop(line(&format!("  {path}: {what}"))));
            }
        }
    }
}

fn list(config: &Config, environment: &Environment) -> anyhow::Result<ExitCode> {
    let all_served = all_named(config, None)?;
    for name in config.model_names(environment)? {
        let served = if all_served.contains(&name) { "*" } else { " " };
        let about = match config.manifest_of(&name, environment) {
            Ok(manifest) => format!("{}{}", state(manifest), additional(config, environment, &name)),
            Err(error) => error.to_string(),
        };
        line(&format!("{served} {:<24} {about}", name.as_str()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn state(manifest: Manifest) -> String {
    let there = manifest.checkpoint.is_dir();
    let packed = if manifest.checkpoint.join(PACKED).is_file() { ", packed" } else { "" };
    let family = manifest.family.as_str();
    let Some(source) = manifest.source else {
        let absent = "absent  its manifest has no source: put the files there yourself";
        return format!("{family}  {}{packed}", if there { "there" } else { absent });
    };
    let all = source.files.len();
    let place = source.place.to_string();
    let retry_policy = crate::models::download::RetryPolicy::default();
    let plan = Plan { source, directory: manifest.checkpoint, weights: None, unread: Vec::new(), offline: true, retry_policy };
    match (there, all) {
        (false, _) => format!("{family}  absent  from {place}"),
        (true, 0) => format!("{family}  there{packed}, not pinned  from {place}"),
        (true, all) => format!("{family}  {} of {all} files there{packed}  from {place}", count(&plan)),
    }
}

/// What is there of the files that modes take from elsewhere.
fn additional(config: &Config, environment: &Environment, name: &ModelName) -> String {
    let plans = plans(config, environment, name, true).unwrap_or_default();
    let mut there = 0;
    let mut all = 0;
    for plan in plans.iter().skip(1) {
        there += count(plan);
        all += plan.source.files.len();
    }
    if all == 0 { String::new() } else { format!(", {there} of {all} files of its modes there") }
}

/// Whether every file is right.
fn verify_files(config: &Config, environment: &Environment, name: &ModelName) -> anyhow::Result<bool> {
    let mut file_checks = Vec::new();
    let manifest = config.manifest_of(name, environment)?;
    if manifest.source.is_none() && atelier_bundled::models().contains(&name.as_str()) {
        file_checks.extend(of_bundled(name, &manifest.checkpoint)?);
    } else {
        for plan in plans(config, environment, name, true)? {
            file_checks.extend(verify(&plan)?);
        }
    }
    anyhow::ensure!(
        !file_checks.is_empty(),
        "{}: its source names no `files`; `atelier models pull` prints them with their checksums",
        manifest.file.display()
    );
    for (path, file_check) in &file_checks {
        let what = match file_check {
            FileCheck::Right => continue,
            FileCheck::Missing => "missing".to_owned(),
            FileCheck::Unverified => "there, and the manifest has no checksum for it".to_owned(),
            FileCheck::Differs { found, expected } => format!("differs: it has the SHA-256 {found}, and must have {expected}"),
        };
        line(&format!("  {path}: {what}"))?;
    }
    let right = file_checks.iter().filter(|(_, file_check)| *file_check == FileCheck::Right).count();
    line(&format!("{}: {right} of {} files are right", name.as_str(), file_checks.len()))?;
    Ok(right == file_checks.len())
}

/// Compares a bundled model's files with those in the program, which no manifest has the checksums of.
fn of_bundled(name: &ModelName, checkpoint: &Path) -> anyhow::Result<Vec<(FilePath, FileCheck)>> {
    let mut file_checks = Vec::new();
    for (path, bytes) in atelier_bundled::files(name.as_str()) {
        let file = checkpoint.join(path);
        let expected = Checksum::of(Sha256::new_with_prefix(bytes));
        let file_check = if file.is_file() {
            let found = Checksum::of_file(&file).with_context(|| format!("{} cannot be read", file.display()))?;
            if found == expected { FileCheck::Right } else { FileCheck::Differs { found, expected } }
        } else {
            FileCheck::Missing
        };
        file_checks.push((FilePath::new(path).map_err(anyhow::Error::msg)?, file_check));
    }
    Ok(file_checks)
}
