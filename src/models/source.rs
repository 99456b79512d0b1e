//! Where a model's files come from: the section `source` of its manifest.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Error as _;

use super::file::{Checksum, FilePath};

/// A place and what is taken from there.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    pub place: Place,
    /// Weight files of this variant (`fp16`) in place of the plain ones.
    pub variant: Option<String>,
    /// Files with their checksums; empty: whatever the engine reads of what is there.
    pub files: BTreeMap<FilePath, Option<Checksum>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Hub {
        /// `owner/name`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
    },
    S3 {
        bucket: String,
        /// Empty, or ends in `/`.
        prefix: String,
    },
    /// Relative to the manifest.
    Directory(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub { repository, revision } => write!(f, "hub {repository}@{revision}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Directory(directory) => write!(f, "{}", directory.display()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    hub: Option<String>,
    s3: Option<String>,
    directory: Option<PathBuf>,
    revision: Option<String>,
    variant: Option<String>,
    #[serde(default)]
    files: BTreeMap<FilePath, Option<Checksum>>,
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { hub, s3, directory, revision, variant, files } = Written::deserialize(deserializer)?;
        let place = match (hub, s3, directory) {
            (Some(repository), None, None) => hub_place(repository, revision.as_deref()),
            (None, Some(address), None) => s3_place(&address),
            (None, None, Some(directory)) => Ok(Place::Directory(directory)),
            _ => Err("must name exactly one of `hub: OWNER/NAME`, `s3: s3://BUCKET/PREFIX/` and `directory: PATH`".to_owned()),
        };
        Ok(Self { place: place.map_err(D::Error::custom)?, variant, files })
    }
}

fn hub_place(repository: String, revision: Option<&str>) -> Result<Place, String> {
    let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let parts: Vec<&str> = repository.split('/').collect();
    if parts.len() != 2 || !parts.iter().all(|part| word(part) && !part.starts_with('.')) {
        return Err(format!("hub must be OWNER/NAME, got {repository:?}"));
    }
    let revision = revision.unwrap_or("main").to_owned();
    if !revision.split('/').all(word) {
        return Err(format!("revision must be a branch, a tag or a commit, got {revision:?}"));
    }
    Ok(Place::Hub { repository, revision })
}

fn s3_place(address: &str) -> Result<Place, String> {
    let wrong = || format!("s3 must be s3://BUCKET/PREFIX/, got {address:?}");
    let (bucket, prefix) =
        address.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))).ok_or_else(wrong)?;
    if bucket.is_empty() {
        return Err(wrong());
    }
    let prefix = if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") };
    Ok(Place::S3 { bucket: bucket.to_owned(), prefix })
}
