//! `atelier models pack`: writes a checkpoint anew, with all weights in one file, and says what the manifest must say then.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use candle_core::{DType, Device};

use super::command::{files_key, line, named};
use super::engine::stable_diffusion;
use crate::config::manifest::{Kind, Manifest};
use crate::config::{Config, Environment};
use crate::models::file::{Checksum, FilePath};
use atelier_engine::sd::StableDiffusion;
use atelier_engine::sd::settings::Settings;

#[derive(clap::Args)]
pub(super) struct Options {
    /// Name of a manifest [default: the model that config.yaml names]
    model: Option<String>,
    /// What the weights are written in: what the function computes in, f16 on a GPU and f32 on a CPU unless `engine.dtype` says otherwise
    #[arg(long)]
    dtype: Kept,
    /// Directory that is written [default: the checkpoint's directory with the format behind its name, such as sd15-f16]
    #[arg(long)]
    to: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kept {
    F32,
    F16,
    Bf16,
}

impl Kept {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// # Errors
/// When the manifest is wrong or of a family that is not packed, the checkpoint cannot be loaded, or the directory not be written.
pub(super) fn run(options: Options, config: &Config, environment: &Environment) -> anyhow::Result<ExitCode> {
    let name = named(config, options.model)?;
    let manifest = config.manifest_of(&name, environment)?;
    anyhow::ensure!(
        manifest.family.kind() == Kind::StableDiffusion,
        "{}: family {} is not packed, only stable-diffusion-1 and stable-diffusion-xl are. Leave it as it is: one file would load no faster",
        manifest.file.display(),
        manifest.family.as_str()
    );
    let checkpoint = &manifest.checkpoint;
    anyhow::ensure!(
        checkpoint.is_dir(),
        "{} is not there; bring it with `atelier models pull {}`",
        checkpoint.display(),
        name.as_str()
    );
    let dtype = options.dtype.dtype();
    let to = options.to.unwrap_or_else(|| default_target(&manifest, dtype));
    // Whole, so that a checkpoint that cannot be generated with is not packed either.
    // ControlNets and IP-Adapters stay where they are.
    let settings =
        Settings { controlnets: Vec::new(), ip_adapters: Vec::new(), ..stable_diffusion(&manifest, dtype, Device::Cpu)? };
    let packed = StableDiffusion::load(&settings)?.pack(&to)?;
    line(&format!(
        "{}: {} tensors as {}, {} bytes, in {}",
        name.as_str(),
        packed.tensors,
        dtype.as_str(),
        packed.bytes,
        to.display()
    ))?;
    let (place, move_first) = place(manifest.directory(), &to)?;
    line(&format!(
        "\n{move_first}put this into {} in place of `checkpoint`, `weights` and `source` (with s3: in place of directory:, where you keep it there)\n\
         checkpoint: {place}\nsource:\n  directory: {place}\n{}",
        manifest.file.display(),
        files_key(checksums(&to)?.iter())
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn default_target(manifest: &Manifest, dtype: DType) -> PathBuf {
    let mut name = manifest.checkpoint.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{}", dtype.as_str()));
    manifest.checkpoint.with_file_name(name)
}

/// What a manifest in the directory `models` calls the directory `to`, and what has to be done before it can.
fn place(models: &Path, to: &Path) -> anyhow::Result<(String, String)> {
    let models = fs::canonicalize(models)?;
    let to = fs::canonicalize(to)?;
    if let Ok(inside) = to.strip_prefix(&models) {
        return Ok((inside.display().to_string(), String::new()));
    }
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let first = format!("move {} into {}, and ", to.display(), models.display());
    Ok((name, first))
}

/// Every file of a packed directory.
fn checksums(directory: &Path) -> anyhow::Result<BTreeMap<FilePath, Checksum>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(inner) = directories.pop() {
        for entry in fs::read_dir(&inner)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(directory)?.to_str().context("a file's name is not text")?;
            let name = FilePath::new(name).map_err(anyhow::Error::msg)?;
            found.insert(name, Checksum::of_file(&path).with_context(|| path.display().to_string())?);
        }
    }
    Ok(found)
}
