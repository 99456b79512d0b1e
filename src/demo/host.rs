//! The host that `demo --serve` opens over the embedded servers, with the page to try it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use anyhow::Context as _;

use super::screen::Screen;
use crate::authorities;
use crate::config::{Config, Environment};
use crate::start;

/// Comes after those of the embedded servers; where another program has it, the page is at a free one.
pub(super) const PORT: u16 = 9446;
const CONFIG: &str = concat!(include_str!("config.yaml"), include_str!("host.yaml"));
const PAUSE: Duration = Duration::from_millis(100);

/// What the host works with.
pub(super) struct Parts<'a> {
    pub(super) out: &'a Path,
    pub(super) config: &'a Config,
    /// What the demo's configuration names.
    pub(super) environment: &'a Environment,
    /// The environment of this process.
    pub(super) outside: &'a Environment,
}

/// Opens the host and prints the page's address once its handlers are ready; runs until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the host cannot be started, or one of its parts ends.
pub(super) async fn serve(screen: &Screen, parts: &Parts<'_>) -> anyhow::Result<()> {
    let file = parts.out.join("host.yaml");
    fs::write(&file, CONFIG).with_context(|| format!("{} cannot be written", file.display()))?;
    // A job that waits from an earlier demo speaks of a bucket that is gone.
    let spool = parts.out.join("spool");
    if spool.exists() {
        fs::remove_dir_all(&spool).with_context(|| format!("{} cannot be emptied", spool.display()))?;
    }
    let environment = environment(parts)?;
    let port = free_port(PORT)?;
    let mut host = Box::pin(start::host::run(start::host::Options::at(port), Some(&file), &environment));
    screen.line("\na host with both models starts");
    tokio::select! {
        ended = &mut host => return ended,
        ready = is_ready(port) => ready?,
    }
    let token = parts.config.security.internal_auth_token.as_ref().map_or("", |token| token.reveal());
    screen.line(&format!("\nthe page to try it yourself: http://127.0.0.1:{port}/#token={token}\n"));
    host.await
}

/// The demo's own variables over those of the system: no queue or bucket of the user's gets into it.
fn environment(parts: &Parts<'_>) -> anyhow::Result<Environment> {
    let mut environment = parts.config.function_environment(None, parts.outside)?;
    environment.extend(parts.environment.clone());
    let out = parts.out.canonicalize()?.to_str().context("--out must be a path in UTF-8")?.to_owned();
    // The webhooks are shown already, and this machine is nobody's spot instance.
    let own = [("DEMO_OUT", out.as_str()), ("LOG_LEVEL", "warn"), ("AWS_EC2_METADATA_DISABLED", "true")];
    environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    Ok(environment)
}

/// `wanted`, or any where another program has that one.
fn free_port(wanted: u16) -> io::Result<u16> {
    let bound = |port| io::Result::Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr()?.port());
    match bound(wanted) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => bound(0),
        found => found,
    }
}

/// Waits until a job would be generated at once.
async fn is_ready(port: u16) -> anyhow::Result<()> {
    let client = authorities::client().no_proxy().build()?;
    let address = format!("http://127.0.0.1:{port}/test");
    while !client.get(&address).send().await.is_ok_and(|answer| answer.status().is_success()) {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
