//! `atelier inspect`: what an image says of itself, and whether its content credentials verify.

pub mod audit;
mod report;
mod source;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use self::report::Report;
use self::source::Source;
use crate::config::Environment;
use crate::content_credentials::verify::{State, verify};
use crate::image_file::{self, notes};
use crate::invisible_mark::{self, Found};

/// Pixels of an image that are looked at for the invisible mark.
const MAX_PIXELS: u64 = 100_000_000;
/// There are no content credentials.
const NONE: u8 = 3;

#[derive(clap::Args)]
pub struct Options {
    /// An image file, or `s3://BUCKET/KEY`, which is read with the settings of `store`
    image: Source,
    /// PEM of the roots that are trusted; without them no signer is, and credentials verify when nothing was changed
    #[arg(long, value_name = "FILE")]
    trust_anchors: Option<PathBuf>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// Prints what is in the image. Exit code 0: its credentials verify; 1: they do not; 3: it has none.
///
/// # Errors
/// When the image or the trust anchors cannot be read, or standard output cannot be written to.
pub async fn run(options: &Options, config: Option<&Path>, environment: &Environment) -> anyhow::Result<ExitCode> {
    let anchors = anchors(options.trust_anchors.as_deref())?;
    let file = options.image.read(config, environment).await?;
    let notes = notes::read(&file).map_err(|problem| anyhow::anyhow!("{}: {problem}", options.image))?;
    let credentials = verify(&file, notes.format, anchors.as_deref());
    let code = match &credentials {
        Ok(None) => ExitCode::from(NONE),
        Ok(Some(credentials)) if holds(credentials.state, anchors.is_some()) => ExitCode::SUCCESS,
        Ok(Some(_)) | Err(_) => ExitCode::FAILURE,
    };
    let report = Report::new(file.len(), notes, mark_in_pixels(&file), credentials);
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(code)
}

/// Whether credentials are worth what they say.
fn holds(state: State, names_anchors: bool) -> bool {
    // Where no one was named who is trusted, no one can be.
    state == State::Trusted || state == State::Valid && !names_anchors
}

/// # Errors
/// When the file is there and cannot be read.
fn anchors(path: Option<&Path>) -> anyhow::Result<Option<String>> {
    let pem =
        path.map(|path| std::fs::read_to_string(path).with_context(|| format!("{} cannot be read as PEM", path.display())));
    pem.transpose()
}

/// # Errors
/// Says why the pixels cannot be read.
fn mark_in_pixels(file: &[u8]) -> Result<Option<Found>, String> {
    let image = image_file::open_any(file, MAX_PIXELS)?.image.into_rgb8();
    Ok(invisible_mark::read(image.as_raw(), image.width(), image.height()))
}
