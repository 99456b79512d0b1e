//! `atelier host`: puts the host together from its configuration and runs it.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::config::{Config, Environment};
use crate::host::cloud::interruption::Interruption;
use crate::host::cloud::protection::Protection;
use crate::host::process::Program;
use crate::host::source::Source;
use crate::host::source::spool::Spool;
use crate::host::source::sqs::Sqs;
use crate::host::teller::Teller;
use crate::host::{Host, Parts, drain};
use crate::notify::Notifier;
use crate::outbound::Outbound;
use crate::store::Store;

#[derive(clap::Args)]
pub struct Options {
    /// Handler processes [default: one a visible GPU]
    #[arg(long)]
    handlers: Option<u32>,
    /// Seconds that running jobs may go on after SIGTERM before they are handed back [default: host.drain_seconds]
    #[arg(long)]
    drain_seconds: Option<u64>,
    /// TCP port of the HTTP server, 0 for a free one [default: server.port]
    #[arg(long)]
    port: Option<u16>,
    /// Another Lambda function than this binary's own, with its arguments
    #[arg(last = true)]
    function: Vec<OsString>,
}

/// Runs the host until it is told to end.
///
/// # Errors
/// When the configuration is wrong, or a queue, the bucket or the port cannot be used.
pub async fn run(options: Options, path: Option<&Path>, environment: &Environment) -> anyhow::Result<()> {
    let mut config = Config::load(path, environment)?;
    config.host.handlers = options.handlers.unwrap_or(config.host.handlers);
    config.host.drain_seconds = options.drain_seconds.unwrap_or(config.host.drain_seconds);
    config.server.port = options.port.unwrap_or(config.server.port);
    let program = program(options.function, path, &config)?;
    let outbound = Outbound::new(&config.outbound)?;
    let notifier = Arc::new(Notifier::new(&config.notify, outbound.clone())?);
    let store = Arc::new(Store::connect(&config.store, outbound).await?);
    let defaults = config.manifest(environment)?.defaults;
    let sources = sources(&config).await?;
    let queue = sources.first().context("no source is configured")?.clone();
    let host = Host::start(Parts {
        gpus: gpus(&config, environment),
        settings: config.host.clone(),
        program,
        sources,
        queue,
        teller: Teller { notifier, store, defaults: defaults.clone() },
        defaults,
        max_attempts: config.runtime.max_attempts,
        token: config.security.internal_auth_token.clone(),
    })?;
    let (orders, ordered) = mpsc::channel(4);
    if let Some(protection) = Protection::new(&config.host.protection)? {
        tokio::spawn(protection.watch(host.desk().glance));
    }
    if let Some(found) = Interruption::find(&config.host.interruption).await? {
        drain::interruption(found, orders.clone());
    }
    drain::signals(orders)?;
    host.run(ordered).await;
    Ok(())
}

/// This binary as the handler, or whatever function the command line names.
fn program(function: Vec<OsString>, config_file: Option<&Path>, config: &Config) -> anyhow::Result<Program> {
    let mut words = function.into_iter();
    let (path, arguments) = match words.next() {
        Some(path) => (path, words.collect()),
        None => {
            let own = std::env::current_exe().context("the path of this binary cannot be found")?;
            let arguments = config_file.map(|file| vec!["--config".into(), file.into()]);
            (own.into(), arguments.unwrap_or_default())
        }
    };
    Ok(Program { path, arguments, function_name: "atelier".into(), memory_mib: config.host.handler.memory_mib })
}

/// The configured queues; where none is, the spool. HTTP jobs go to the first.
async fn sources(config: &Config) -> anyhow::Result<Vec<Arc<dyn Source>>> {
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    if config.sources.sqs.queue_url.is_some() {
        sources.push(Arc::new(Sqs::connect(&config.sources.sqs).await?));
    }
    if sources.is_empty() {
        sources.push(Arc::new(Spool::open(&config.sources.spool)?));
    }
    Ok(sources)
}

/// One a handler: which GPU it is to see.
fn gpus(config: &Config, environment: &Environment) -> Vec<Option<String>> {
    let visible: Vec<String> = environment
        .get("CUDA_VISIBLE_DEVICES")
        .map(|list| list.split(',').map(|gpu| gpu.trim().to_owned()).filter(|gpu| !gpu.is_empty()).collect())
        .unwrap_or_default();
    let handlers = match config.host.handlers {
        0 => visible.len().max(1),
        handlers => handlers as usize,
    };
    (0..handlers).map(|index| visible.get(index % visible.len().max(1)).cloned()).collect()
}
