//! Brings models from a hub, a bucket or a directory to where they are read, and proves that they are what their manifests mean.

pub mod download;
pub mod file;
pub mod hub;
mod listing;
pub mod origin;
pub mod source;
pub mod wanted;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use self::download::{RetryPolicy, Wanted, download};
use self::file::{Checksum, FilePath};
use self::listing::{Listed, Listing};
use self::origin::Origin;
use self::source::Source;
use self::wanted::wanted;
use crate::setting::SettingError;

/// What is to be where.
#[derive(Debug, Clone)]
pub struct Plan {
    pub source: Source,
    /// The checkpoint's directory.
    pub directory: PathBuf,
    /// The one file that holds all weights, where the manifest names one.
    pub weights: Option<FilePath>,
    /// Directories of weights that nothing reads: a model with another one's transformer does not bring its own.
    pub unread: Vec<&'static str>,
    /// Whether nothing may be fetched.
    pub offline: bool,
    pub retry_policy: RetryPolicy,
}

/// What was done.
#[derive(Debug)]
pub struct Pulled {
    pub files: BTreeMap<FilePath, (Checksum, How)>,
    /// What a hub's revision was at the time.
    pub commit: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    There,
    Pulled {
        /// Whether a part of it was there already.
        resumed: bool,
    },
}

/// What happens during a pull.
#[derive(Debug)]
pub enum Step<'a> {
    Begins {
        path: &'a FilePath,
        at_bytes: u64,
        bytes: Option<u64>,
    },
    /// Of the file that began last.
    At {
        bytes: u64,
    },
    Ends {
        path: &'a FilePath,
        how: How,
    },
}

/// How a file is, compared with its manifest.
#[derive(Debug, PartialEq, Eq)]
pub enum FileCheck {
    Right,
    Missing,
    /// It is there, and the manifest has no checksum for it.
    Unverified,
    Differs {
        found: Checksum,
        expected: Checksum,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The place refuses, or is none.
    #[error("{place} {problem}")]
    Place { place: String, problem: String },
    /// What may pass.
    #[error("{place} could not be reached: {problem}")]
    Unreachable { place: String, problem: String },
    #[error("{place} lacks {}", files.join(", "))]
    Lacks { place: String, files: Vec<String> },
    #[error("offline, and {} would have to be fetched; allow it (hub.offline, --offline), or bring it yourself", files.join(", "))]
    Offline { files: Vec<String> },
    #[error("{path}: the connection broke ({problem}); what came is kept, pull again to go on")]
    Broken { path: FilePath, problem: String },
    #[error("{path}: has the SHA-256 {found}, and must have {expected}; nothing of it was kept")]
    Differs { path: FilePath, found: Checksum, expected: Checksum },
    #[error("{path}: another pull is writing it; wait for that, or stop it")]
    Busy { path: FilePath },
    #[error("{}: {problem}", path.display())]
    Io { path: PathBuf, problem: String },
}

/// Makes everything of `plan` be there. Files that are right are left alone; no file has its name before it is whole and verified.
///
/// # Errors
/// [`ModelError`] says what is wrong with which file or place. What was right before stays so.
pub async fn pull(plan: &Plan, origin: &Origin, report: &(dyn Fn(&Step<'_>) + Sync)) -> Result<Pulled, ModelError> {
    let mut files = BTreeMap::new();
    let mut open = BTreeMap::new();
    for (path, pinned) in &plan.source.files {
        match there(plan, path, *pinned)? {
            Some(found) => drop(files.insert(path.clone(), (found, How::There))),
            None => drop(open.insert(path.clone(), *pinned)),
        }
    }
    if plan.offline {
        return offline(plan, open, files);
    }
    if open.is_empty() && !plan.source.files.is_empty() {
        return Ok(Pulled { files, commit: None });
    }
    let Listing { commit, files: listed } = plan.retry_policy.with(async || origin.list().await).await?;
    let listed: BTreeMap<FilePath, Listed> = listed.into_iter().map(|file| (file.path.clone(), file)).collect();
    let lacks = |files: Vec<String>| ModelError::Lacks { place: plan.source.place.to_string(), files };
    if plan.source.files.is_empty() {
        let names: Vec<FilePath> = listed.keys().cloned().collect();
        let chosen = wanted(&names, plan.source.variant.as_deref(), (plan.weights.as_ref(), &plan.unread)).map_err(lacks)?;
        open.extend(chosen.into_iter().map(|path| (path, None)));
    }
    let missing: Vec<String> = open.keys().filter(|path| !listed.contains_key(*path)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(lacks(missing));
    }
    for (path, pinned) in &open {
        if let (Some(expected), Some(found)) = (*pinned, listed[path].checksum)
            && expected != found
        {
            return Err(ModelError::Differs { path: path.clone(), found, expected });
        }
    }
    for (path, pinned) in open {
        let Listed { bytes, checksum, .. } = listed[&path];
        let wanted = Wanted { path: &path, expected: pinned.or(checksum), bytes, commit: commit.as_deref() };
        let ended = match as_listed(&plan.directory, &wanted, pinned)? {
            Some(found) => (found, How::There),
            None => download(origin, &plan.directory, &wanted, plan.retry_policy, report).await?,
        };
        report(&Step::Ends { path: &path, how: ended.1 });
        files.insert(path, ended);
    }
    Ok(Pulled { files, commit })
}

/// The checksum of a file that the manifest alone proves to be right.
fn there(plan: &Plan, path: &FilePath, pinned: Option<Checksum>) -> Result<Option<Checksum>, ModelError> {
    let found = checksum(&plan.directory, path)?;
    Ok(found.filter(|found| pinned == Some(*found) || pinned.is_none() && plan.offline))
}

/// The checksum of a file that is as its place says: by its checksum, or, where the place has none, by its length.
fn as_listed(directory: &Path, wanted: &Wanted<'_>, pinned: Option<Checksum>) -> Result<Option<Checksum>, ModelError> {
    if pinned.is_some() {
        return Ok(None);
    }
    let Some(found) = checksum(directory, wanted.path)? else { return Ok(None) };
    let length = std::fs::metadata(wanted.path.under(directory)).map(|about| about.len()).ok();
    let right = wanted.expected.map_or(wanted.bytes.is_some() && wanted.bytes == length, |expected| expected == found);
    Ok(Some(found).filter(|_| right))
}

fn checksum(directory: &Path, path: &FilePath) -> Result<Option<Checksum>, ModelError> {
    let target = path.under(directory);
    match Checksum::of_file(&target) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ModelError::Io { path: target, problem: error.to_string() }),
    }
}

fn offline(
    plan: &Plan,
    open: BTreeMap<FilePath, Option<Checksum>>,
    files: BTreeMap<FilePath, (Checksum, How)>,
) -> Result<Pulled, ModelError> {
    if plan.source.files.is_empty() {
        return Err(ModelError::Offline { files: vec![format!("the list of files of {}", plan.source.place)] });
    }
    let missing: Vec<String> =
        open.keys().filter(|path| !path.under(&plan.directory).exists()).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(ModelError::Offline { files: missing });
    }
    for (path, pinned) in open {
        if let (Some(expected), Some(found)) = (pinned, checksum(&plan.directory, &path)?) {
            return Err(ModelError::Differs { path, found, expected });
        }
    }
    Ok(Pulled { files, commit: None })
}

/// Compares what is there with the manifest, without asking anyone.
///
/// # Errors
/// When a file is there and cannot be read.
pub fn verify(plan: &Plan) -> Result<BTreeMap<FilePath, FileCheck>, ModelError> {
    let checks = plan.source.files.iter().map(|(path, pinned)| {
        let file_check = match (checksum(&plan.directory, path)?, *pinned) {
            (None, _) => FileCheck::Missing,
            (Some(_), None) => FileCheck::Unverified,
            (Some(found), Some(expected)) if found == expected => FileCheck::Right,
            (Some(found), Some(expected)) => FileCheck::Differs { found, expected },
        };
        Ok((path.clone(), file_check))
    });
    checks.collect()
}

/// How many of the manifest's files are there, by their names alone.
#[must_use]
pub fn count(plan: &Plan) -> usize {
    plan.source.files.keys().filter(|path| path.under(&plan.directory).is_file()).count()
}
