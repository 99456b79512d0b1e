//! Which file counts, and which variables are laid over it.

use std::path::Path;

use super::finding::Finding;
use crate::config::{Config, Environment};

/// Of a configuration that could be read.
pub(super) fn check(path: Option<&Path>, environment: &Environment) -> Finding {
    let file = Config::file(path, environment).map_or("no file, the built-in values".into(), |file| file.display().to_string());
    let over: Vec<&str> = environment.keys().map(String::as_str).filter(|name| name.starts_with("ATELIER__")).collect();
    let over = if over.is_empty() { "no ATELIER__ variable over it".into() } else { format!("under {}", over.join(", ")) };
    Finding::ok("config", format!("{file}; {over}"))
}
