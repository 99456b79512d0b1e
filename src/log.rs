//! Where the log goes, and in which form.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::Environment;

/// What is told where `LOG_LEVEL` says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultLevel {
    Outcomes,
    /// For roles that talk to a person.
    Warnings,
    /// For `atelier doctor`, whose output says all of it.
    Nothing,
}

/// JSON lines for machines, short lines for people; `LOG_LEVEL` in the syntax of tracing's `EnvFilter`.
pub fn start(environment: &Environment, default_level: DefaultLevel) {
    // lapin tells of a broken connection in its own words next to ours.
    let otherwise = match default_level {
        DefaultLevel::Outcomes => "info,lapin=off",
        DefaultLevel::Warnings => "warn,lapin=off",
        DefaultLevel::Nothing => "off",
    };
    let level = environment.get("LOG_LEVEL").map_or(otherwise, String::as_str).to_lowercase();
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(level)).with_writer(stderr);
    if stderr().is_terminal() || default_level != DefaultLevel::Outcomes {
        log.without_time().with_target(false).init();
    } else {
        log.json().flatten_event(true).with_current_span(false).with_target(false).init();
    }
}
