//! Paths of a manifest, which start where it lies.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

pub(super) fn relative<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    if path.is_relative() { Ok(path) } else { Err(de::Error::custom("must be relative to the manifest")) }
}

pub(super) fn relative_if_any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    relative(deserializer).map(Some)
}
