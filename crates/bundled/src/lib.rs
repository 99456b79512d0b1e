//! The bundled models inside the program, and where their files are unpacked, since the engine reads files.
//!
//! Their place is named by the hash of all they contain, so that another build's models are never mixed with these. What is there was
//! renamed into place complete; only one process unpacks at a time, and the lock of one that is killed is free again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/files.rs"));

/// The directory in the user's cache directory.
const OWN: &str = "atelier";
/// What a directory is called that is not complete yet.
const PARTIAL: &str = "partial-";

/// Why the bundled models cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum BundledError {
    #[error("there is no home directory to unpack them in; set XDG_CACHE_HOME")]
    NoHome,
    #[error("they cannot be unpacked in {}: {source}; set XDG_CACHE_HOME to a directory that can be written", directory.display())]
    Unpack { directory: PathBuf, source: io::Error },
}

/// Names of the bundled models.
#[must_use]
pub fn models() -> &'static [&'static str] {
    MODELS
}

/// The files of a bundled model, each with its path in the model's directory and its bytes.
pub fn files(model: &str) -> impl Iterator<Item = (&'static str, &'static [u8])> {
    let directory = format!("{model}/");
    FILES.iter().filter_map(move |(path, bytes)| Some((path.strip_prefix(&directory)?, *bytes)))
}

/// The directory with the manifests, `NAME.yaml`, and the models next to them: `$XDG_CACHE_HOME/atelier/models-HASH` (without the variable
/// `~/.cache/...`). The first call unpacks them, 28 MB.
///
/// # Errors
/// When there is no such directory and none can be made.
pub fn directory() -> Result<PathBuf, BundledError> {
    #[expect(clippy::disallowed_methods, reason = "who unpacks here does not depend on a configuration")]
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    // A user without a home, as in some containers, can still name a cache directory: libraries ask for the home first.
    let cache = named.or_else(|| Some(std::env::home_dir()?.join(".cache"))).ok_or(BundledError::NoHome)?.join(OWN);
    unpack(&cache).map_err(|source| BundledError::Unpack { directory: cache, source })
}

/// Unpacks into `cache`, unless it is done already; returns the directory with the files.
///
/// # Errors
/// Those of the file system.
pub fn unpack(cache: &Path) -> io::Result<PathBuf> {
    let place = cache.join(format!("models-{}", &HASH[..16]));
    if is_complete(&place) {
        return Ok(place);
    }
    fs::create_dir_all(cache)?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    // Another process may have done it meanwhile.
    if !is_complete(&place) {
        forget_partial(cache)?;
        let partial = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(cache)?;
        write(&partial.path().join("models"))?;
        if place.exists() {
            // Something has cleaned up in it.
            fs::rename(&place, partial.path().join("old"))?;
        }
        fs::rename(partial.path().join("models"), &place)?;
    }
    Ok(place)
}

/// Whether every file is there with all its bytes. A look at lengths takes no time; bytes only change by someone's hand.
fn is_complete(place: &Path) -> bool {
    FILES.iter().all(|(path, bytes)| fs::metadata(place.join(path)).is_ok_and(|found| found.len() == bytes.len() as u64))
}

/// Removes what processes left that were killed while they unpacked; the caller has the lock, so no other is at it.
fn forget_partial(cache: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn write(directory: &Path) -> io::Result<()> {
    for (path, bytes) in FILES {
        let file = directory.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, bytes)?;
        // A machine that loses power after the rename must not have files of zeros.
        File::open(&file)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_unpacked_once_and_again_when_one_is_gone_or_cut() -> io::Result<()> {
        let cache = tempfile::tempdir()?;
        let place = unpack(cache.path())?;
        for (path, bytes) in FILES {
            assert_eq!(fs::read(place.join(path))?, *bytes, "{path}");
        }
        let changed = || fs::metadata(place.join(FILES[0].0)).and_then(|file| file.modified());
        let before = changed()?;
        assert_eq!(unpack(cache.path())?, place);
        assert_eq!(changed()?, before, "nothing is written twice");
        fs::remove_file(place.join(FILES[1].0))?;
        assert!(is_complete(&unpack(cache.path())?));
        fs::write(place.join(FILES[2].0), b"")?;
        assert!(is_complete(&unpack(cache.path())?));
        Ok(())
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_never_taken_for_the_models() -> io::Result<()> {
        let cache = tempfile::tempdir()?;
        let left = cache.path().join(format!("{PARTIAL}left/models"));
        fs::create_dir_all(&left)?;
        fs::write(left.join("tiny-sd.yaml"), b"half")?;
        assert!(is_complete(&unpack(cache.path())?));
        let mut names: Vec<String> = fs::read_dir(cache.path())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<_>>()?;
        names.sort();
        assert_eq!(names, ["lock".to_owned(), format!("models-{}", &HASH[..16])]);
        Ok(())
    }

    #[test]
    fn many_at_once_get_the_same_complete_directory() {
        let cache = tempfile::tempdir().expect("a directory");
        std::thread::scope(|scope| {
            let each: Vec<_> = (0..8).map(|_| scope.spawn(|| unpack(cache.path()).map(|place| is_complete(&place)))).collect();
            for thread in each {
                assert!(thread.join().expect("no panic").expect("unpacked"));
            }
        });
        assert_eq!(fs::read_dir(cache.path()).expect("readable").count(), 2, "the models and the lock");
    }
}
