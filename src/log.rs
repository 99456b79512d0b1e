//! Where the log goes, and in which form.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::Environment;

/// JSON lines for machines, short lines for people; `LOG_LEVEL` in the syntax of tracing's `EnvFilter`.
pub fn start(environment: &Environment, quiet: bool) {
    // lapin tells of a broken connection in its own words beside ours.
    let usual = if quiet { "warn,lapin=off" } else { "info,lapin=off" };
    let level = environment.get("LOG_LEVEL").map_or(usual, String::as_str).to_lowercase();
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(level)).with_writer(stderr);
    if stderr().is_terminal() || quiet {
        log.without_time().with_target(false).init();
    } else {
        log.json().flatten_event(true).with_current_span(false).with_target(false).init();
    }
}
