//! Downloaded inputs on disk, bounded in bytes: what was used longest ago goes first, what is in use never goes.
//!
//! - A file's name says everything: `{sha256 of the address}-{length}-{hex of the ETag}`, so that nothing else has to be
//!   kept and the cache survives a restart. When a file was last used is its modification time.
//! - A download is written next to and renamed when it is whole. What a killed process left is removed at start.
//! - Every process works in a numbered directory of its own, held by a file lock.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Settings of section `store.cache`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Directory of the cache; created when it is missing. Each process on the machine uses a numbered directory in it.
    pub directory: PathBuf,
    /// Bytes to keep on disk (of each process); exceeded only by files that jobs in progress use.
    pub max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { directory: "/tmp/atelier/inputs".into(), max_bytes: 4 << 30 }
    }
}

/// The cache; clones are the same cache.
#[derive(Debug, Clone)]
pub struct Cache(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    max_bytes: u64,
    files: Mutex<Files>,
    /// Held as long as this process lives, so that no other one takes this directory.
    _lock: File,
}

#[derive(Debug, Default)]
struct Files {
    by_name: HashMap<String, Entry>,
    next_download: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    last_used: SystemTime,
    users: usize,
    /// Goes as soon as nobody uses it.
    unwanted: bool,
}

/// A file in the cache that stays there until this is dropped.
#[derive(Debug)]
pub struct Lease {
    cache: Cache,
    name: String,
    path: PathBuf,
    bytes: u64,
}

/// A file being written; removed again unless it is kept.
#[derive(Debug)]
pub(super) struct Download {
    cache: Cache,
    path: PathBuf,
    pub(super) file: tokio::fs::File,
}

impl Cache {
    /// Takes a directory, removes what a killed process left there and counts the rest.
    ///
    /// # Errors
    /// When the directory cannot be created, locked or read.
    pub fn open(settings: &Settings) -> io::Result<Self> {
        let (directory, lock) = own_directory(&settings.directory)?;
        let mut by_name = HashMap::new();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match parts(&name) {
                _ if name == LOCK => {}
                Some((_, bytes, _)) if bytes == metadata.len() => {
                    by_name.insert(name, Entry { bytes, last_used: metadata.modified()?, users: 0, unwanted: false });
                }
                _ => fs::remove_file(entry.path())?,
            }
        }
        let files = Mutex::new(Files { by_name, next_download: 0 });
        let cache = Self(Arc::new(Inner { directory, max_bytes: settings.max_bytes, files, _lock: lock }));
        cache.evict(&mut cache.files(), 0);
        Ok(cache)
    }

    /// Bytes of all files that are kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files().bytes()
    }

    /// The file last kept under `address` (any text that distinguishes addresses), with its `ETag`.
    pub(super) fn newest(&self, address: &str) -> Option<(Lease, String)> {
        let address = hash(address);
        let mut files = self.files();
        loop {
            let of_address = files.by_name.iter().filter(|(name, entry)| name.starts_with(&address) && !entry.unwanted);
            let name = of_address.max_by_key(|(_, entry)| entry.last_used)?.0.clone();
            let (_, bytes, etag) = parts(&name)?;
            let path = self.0.directory.join(&name);
            if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes) {
                return Some((self.lend(&mut files, name, bytes), etag));
            }
            files.by_name.remove(&name);
        }
    }

    /// Removes what is kept under `address`, or sees to it that the last user does.
    pub(super) fn forget(&self, address: &str) {
        let address = hash(address);
        let mut files = self.files();
        for (_, entry) in files.by_name.iter_mut().filter(|(name, _)| name.starts_with(&address)) {
            entry.unwanted = true;
        }
        let idle = files.by_name.extract_if(|_, entry| entry.unwanted && entry.users == 0);
        idle.for_each(|(name, _)| self.remove(&name));
    }

    fn remove(&self, name: &str) {
        if let Err(error) = fs::remove_file(self.0.directory.join(name)) {
            tracing::warn!(%error, name, "a cached input could not be removed");
        }
    }

    /// Starts a file of about `expected_bytes`, for which room is made first.
    pub(super) async fn begin(&self, expected_bytes: u64) -> io::Result<Download> {
        let path = {
            let mut files = self.files();
            self.evict(&mut files, expected_bytes);
            files.next_download += 1;
            self.0.directory.join(format!("{}.part", files.next_download))
        };
        let file = tokio::fs::File::create(&path).await?;
        Ok(Download { cache: self.clone(), path, file })
    }

    fn lend(&self, files: &mut Files, name: String, bytes: u64) -> Lease {
        let path = self.0.directory.join(&name);
        let now = SystemTime::now();
        let entry = files.by_name.entry(name.clone()).or_insert(Entry { bytes, last_used: now, users: 0, unwanted: false });
        entry.users += 1;
        entry.last_used = now;
        // Only the order of eviction after a restart hangs on it.
        let _ = File::options().append(true).open(&path).and_then(|file| file.set_modified(now));
        Lease { cache: self.clone(), name, path, bytes }
    }

    fn evict(&self, files: &mut Files, coming_bytes: u64) {
        while files.bytes() + coming_bytes > self.0.max_bytes {
            let idle = files.by_name.iter().filter(|(_, entry)| entry.users == 0);
            let Some(name) = idle.min_by_key(|(_, entry)| entry.last_used).map(|(name, _)| name.clone()) else { return };
            files.by_name.remove(&name);
            self.remove(&name);
        }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn bytes(&self) -> u64 {
        self.by_name.values().map(|entry| entry.bytes).sum()
    }
}

impl Download {
    /// Makes the finished file known under `address` and `etag`; without an `etag` nothing says when it is outdated, and
    /// it goes as soon as it is no longer used.
    pub(super) fn keep(self, address: &str, etag: Option<&str>, bytes: u64) -> io::Result<Lease> {
        let etag = etag.filter(|etag| etag.len() <= MAX_ETAG_BYTES);
        let name = match etag {
            Some(etag) => format!("{}-{bytes}-{}", hash(address), base16ct::lower::encode_string(etag.as_bytes())),
            None => self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let cache = self.cache.clone();
        let mut files = cache.files();
        fs::rename(&self.path, cache.0.directory.join(&name))?;
        let kept = cache.lend(&mut files, name, bytes);
        cache.evict(&mut files, 0);
        drop(files);
        Ok(kept)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let files = self.cache.files();
        let kept = self.path.file_name().is_some_and(|name| files.by_name.contains_key(&*name.to_string_lossy()));
        if !kept {
            // After a rename there is nothing left under this name.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Lease {
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let cache = self.cache.clone();
        let mut files = cache.files();
        let Some(entry) = files.by_name.get_mut(&self.name) else { return };
        entry.users -= 1;
        if entry.users == 0 && (entry.unwanted || parts(&self.name).is_none()) {
            files.by_name.remove(&self.name);
            let _ = fs::remove_file(&self.path);
        }
        cache.evict(&mut files, 0);
    }
}

const LOCK: &str = "lock";
/// In hex, with the hash and the length next to it, a longer one would not fit into a file name.
const MAX_ETAG_BYTES: usize = 80;

fn own_directory(root: &Path) -> io::Result<(PathBuf, File)> {
    const MAX_PROCESSES: u32 = 256;
    for number in 0..MAX_PROCESSES {
        let directory = root.join(number.to_string());
        fs::create_dir_all(&directory)?;
        let lock = File::create(directory.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => return Ok((directory, lock)),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other(format!("{MAX_PROCESSES} other processes use this directory")))
}

fn hash(address: &str) -> String {
    base16ct::lower::encode_string(&Sha256::digest(address))
}

/// The hash of the address, the length and the `ETag` out of a file's name.
fn parts(name: &str) -> Option<(&str, u64, String)> {
    let mut parts = name.splitn(3, '-');
    let address = parts.next()?;
    let bytes = parts.next()?.parse().ok()?;
    let etag = parts.next()?;
    let etag = base16ct::lower::decode_vec(etag).ok().and_then(|etag| String::from_utf8(etag).ok())?;
    Some((address, bytes, etag))
}
