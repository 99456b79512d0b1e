//! `atelier invoke FILE`: one event through the handler in this process, the reply on standard output.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::value::RawValue;

use crate::config::{Config, Environment};
use crate::start;
use crate::start::command::input;
use crate::workflow::control::{Control, Shutdown};
use crate::workflow::infer::Observer;

#[derive(clap::Args)]
pub struct Options {
    /// The event as JSON, such as events/sqs-plain.json; `-` for standard input
    event: PathBuf,
}

/// Runs the event and prints the reply.
///
/// # Errors
/// When the event cannot be read, the function not be set up, or the handler failed.
pub async fn run(options: &Options, config: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    let text = input(&options.event)?;
    let event: Box<RawValue> =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", options.event.display()))?;
    let mut config = Config::load(config, environment)?;
    // Standard output is the reply's alone.
    config.metrics.emf = false;
    let handler = start::handler(&config, environment, Observer { step: Arc::new(|_, _| ()), previews: None }).await?;
    let (_switch, shutdown) = Shutdown::channel();
    let reply = handler.handle(&event, &Control::unlimited(shutdown)).await?;
    writeln!(std::io::stdout().lock(), "{}", serde_json::to_string_pretty(&reply)?)?;
    Ok(())
}
