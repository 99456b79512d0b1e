//! What commands have in common: whose model, an input file, a line of output, a key of a manifest, the completion script of a shell.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _, stdin, stdout};
use std::path::Path;

use anyhow::Context as _;

use crate::config::Config;
use crate::job::task::ModelName;
use crate::models::file::{Checksum, FilePath};

pub(super) fn named(config: &Config, model: Option<String>) -> anyhow::Result<ModelName> {
    let Some(model) = model else { return Ok(config.model.name.clone()) };
    ModelName::new(&model).map_err(|problem| anyhow::anyhow!("MODEL: {problem}"))
}

/// The model that the command line names, else each that the configuration names.
pub(super) fn all_named(config: &Config, model: Option<String>) -> anyhow::Result<Vec<ModelName>> {
    match model {
        Some(model) => named(config, Some(model)).map(|name| vec![name]),
        None => Ok(config.of_each_model().into_iter().map(|own| own.model.name).collect()),
    }
}

/// The file that the command line names; `-`: standard input.
pub(crate) fn input(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file != Path::new("-") {
        return std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()));
    }
    let mut text = Vec::new();
    stdin().lock().read_to_end(&mut text).context("standard input cannot be read")?;
    Ok(text)
}

pub(crate) fn line(text: &str) -> std::io::Result<()> {
    writeln!(stdout().lock(), "{text}")
}

/// The key `files` of a source.
pub(super) fn files_key<'a>(files: impl Iterator<Item = (&'a FilePath, &'a Checksum)>) -> String {
    let mut key = String::from("  files:\n");
    for (path, checksum) in files {
        let _ = writeln!(key, "    {path}: {checksum}");
    }
    key
}

/// Writes the completion script of `shell` to standard output.
///
/// # Errors
/// When standard output takes nothing.
pub fn complete(shell: clap_complete::Shell, command: &mut clap::Command) -> std::io::Result<()> {
    // Into memory first: clap_complete panics where no one reads what it writes.
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "atelier", &mut script);
    stdout().write_all(&script)
}
