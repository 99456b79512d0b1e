//! One file from its place to its name: gone on with after a break, verified before it has the name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

use super::file::{Checksum, FilePath, feed};
use super::listing::Content;
use super::origin::Origin;
use super::{How, ModelError, Step};
use crate::backoff::Backoff;

/// How often something is tried that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Of a request, and of a download that does not get on.
    pub attempts: u32,
    /// At most; it doubles from one attempt to the next.
    pub initial_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, initial_backoff: Duration::from_secs(1) }
    }
}

/// However often it is tried, it is not so long that a network that is back goes unnoticed.
const MAX_BACKOFF: Duration = Duration::from_mins(1);

impl RetryPolicy {
    /// Does `work` until it succeeds, fails for good, or has been tried often enough.
    pub(super) async fn with<T>(self, mut work: impl AsyncFnMut() -> Result<T, ModelError>) -> Result<T, ModelError> {
        let mut backoff = self.backoff();
        for _ in 1..self.attempts {
            match work().await {
                Err(ModelError::Unreachable { .. }) => tokio::time::sleep(backoff.next_pause()).await,
                done => return done,
            }
        }
        work().await
    }

    fn backoff(self) -> Backoff {
        Backoff::new(self.initial_backoff, MAX_BACKOFF.max(self.initial_backoff))
    }
}

/// A file to be fetched.
pub(super) struct Wanted<'a> {
    pub(super) path: &'a FilePath,
    pub(super) expected: Option<Checksum>,
    /// Of all of it.
    pub(super) bytes: Option<u64>,
    pub(super) commit: Option<&'a str>,
}

/// What has come of a file so far; locked, so that two pulls never write it together.
struct Part {
    path: PathBuf,
    file: File,
    digest: Sha256,
    bytes: u64,
}

impl Part {
    /// Opens what is there already. Halves of other versions are taken away.
    fn open(target: &Path, wanted: &Wanted<'_>) -> Result<Self, ModelError> {
        let failed = |error: std::io::Error| ModelError::Io { path: target.to_owned(), problem: error.to_string() };
        let directory = target.parent().unwrap_or(Path::new(""));
        fs::create_dir_all(directory).map_err(failed)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let identity = match wanted.expected {
            Some(checksum) => checksum,
            None => Checksum::of(Sha256::new_with_prefix(format!("{:?} {:?}", wanted.commit, wanted.bytes))),
        };
        let path = directory.join(format!(".{name}.{:.16}.part", identity.to_string()));
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        locked(&file, wanted.path)?;
        forget_others(directory, &format!(".{name}."), &path).map_err(failed)?;
        let mut part = Self { path, file, digest: Sha256::new(), bytes: 0 };
        feed(&mut part.digest, &mut part.file).map_err(failed)?;
        part.bytes = part.file.stream_position().map_err(failed)?;
        Ok(part)
    }

    fn empty(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.digest, self.bytes) = (Sha256::new(), 0);
        Ok(())
    }

    fn add(&mut self, piece: &[u8]) -> std::io::Result<()> {
        self.file.write_all(piece)?;
        self.digest.update(piece);
        self.bytes += piece.len() as u64;
        Ok(())
    }

    /// Gives the file its name; it is on the disk before.
    fn keep(self, target: &Path) -> std::io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        File::open(target.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

fn locked(file: &File, path: &FilePath) -> Result<(), ModelError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(ModelError::Busy { path: path.clone() }),
        Err(TryLockError::Error(error)) => Err(ModelError::Io { path: path.as_str().into(), problem: error.to_string() }),
    }
}

fn forget_others(directory: &Path, prefix: &str, own: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_part = name.starts_with(prefix) && path.extension().is_some_and(|extension| extension == "part");
        if is_part && path != own && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Fetches what is missing of a file into `directory`.
pub(super) async fn download(
    origin: &Origin,
    directory: &Path,
    wanted: &Wanted<'_>,
    retry_policy: RetryPolicy,
    report: &(dyn Fn(&Step<'_>) + Sync),
) -> Result<(Checksum, How), ModelError> {
    let path = wanted.path;
    let target = path.under(directory);
    let failed = |error: std::io::Error| ModelError::Io { path: target.clone(), problem: error.to_string() };
    let mut part = Part::open(&target, wanted)?;
    let mut resumed = part.bytes > 0;
    loop {
        report(&Step::Begins { path, at_bytes: part.bytes, bytes: wanted.bytes });
        resumed &= fetch(origin, wanted, &mut part, retry_policy, report).await?;
        let found = Checksum::of(part.digest.clone());
        match wanted.expected {
            Some(expected) if expected != found && resumed => {
                // Who knows what had come before: once more from the beginning.
                part.empty().map_err(failed)?;
                resumed = false;
            }
            Some(expected) if expected != found => {
                fs::remove_file(&part.path).map_err(failed)?;
                return Err(ModelError::Differs { path: path.clone(), found, expected });
            }
            _ => {
                part.keep(&target).map_err(failed)?;
                return Ok((found, How::Pulled { resumed }));
            }
        }
    }
}

/// Reads to the end, over breaks. Returns whether what was there at first is a part of it.
async fn fetch(
    origin: &Origin,
    wanted: &Wanted<'_>,
    part: &mut Part,
    retry_policy: RetryPolicy,
    report: &(dyn Fn(&Step<'_>) + Sync),
) -> Result<bool, ModelError> {
    let mut kept = true;
    let mut backoff = retry_policy.backoff();
    let mut breaks = 0;
    loop {
        let before = part.bytes;
        if wanted.bytes == Some(before) && before > 0 {
            return Ok(kept);
        }
        let content = retry_policy.with(async || origin.open(wanted.path, wanted.commit, before).await).await?;
        if content.from != before {
            part.empty().map_err(|error| ModelError::Io { path: part.path.clone(), problem: error.to_string() })?;
            kept = false;
        }
        let Some(problem) = take(content, part, report).await? else { return Ok(kept) };
        if part.bytes > before {
            backoff.reset();
            breaks = 0;
        }
        breaks += 1;
        if breaks >= retry_policy.attempts {
            return Err(ModelError::Broken { path: wanted.path.clone(), problem });
        }
        tokio::time::sleep(backoff.next_pause()).await;
    }
}

/// Writes what comes; what broke it off, if anything did.
async fn take(
    mut content: Content,
    part: &mut Part,
    report: &(dyn Fn(&Step<'_>) + Sync),
) -> Result<Option<String>, ModelError> {
    let end = content.bytes.map(|bytes| part.bytes + bytes);
    while let Some(piece) = content.chunks.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(problem) => return Ok(Some(problem)),
        };
        let added = part.add(&piece);
        added.map_err(|error| ModelError::Io { path: part.path.clone(), problem: error.to_string() })?;
        report(&Step::At { bytes: part.bytes });
    }
    Ok(end.filter(|end| part.bytes < *end).map(|end| format!("{} of {end} bytes came", part.bytes)))
}
