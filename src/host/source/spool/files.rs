//! The spool's directories on disk: created, synced, renamed, locked.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::name::{Name, PARTIAL};

/// The directory of notes about jobs that have ended and whose callers do not know it yet, each under its job's unique name.
const ENDED: &str = "ended";

/// More than most jobs have.
const PROBE_BYTES: usize = 64 << 10;

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directory {
    Waiting,
    Running,
    Dead,
    Again,
}

impl Directory {
    const ALL: [Self; 4] = [Self::Waiting, Self::Running, Self::Dead, Self::Again];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Dead => "dead",
            Self::Again => "again",
        }
    }
}

/// What becomes of the note about how a job ended.
#[derive(Clone)]
pub(super) enum EndNote {
    Stays,
    /// None: it is removed.
    Becomes(Option<String>),
}

pub(super) struct Files {
    root: PathBuf,
    /// Locked for as long as this host lives; the kernel unlocks it when the host dies.
    _lock: File,
}

impl Files {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        for directory in Directory::ALL {
            fs::create_dir_all(root.join(directory.as_str()))?;
        }
        fs::create_dir_all(root.join(ENDED))?;
        let lock = File::create(root.join("lock"))?;
        lock.try_lock()
            .map_err(|_| io::Error::other("another host uses this directory; give each its own (sources.spool.directory)"))?;
        let files = Self { root: root.to_owned(), _lock: lock };
        if let (_, Some(error)) = files.take_again() {
            let directory = root.join(Directory::Again.as_str());
            let directory = directory.display();
            tracing::warn!(%directory, %error, "what was sent again from the dead letters cannot be moved to waiting/");
        }
        Ok(files)
    }

    /// For messages.
    pub(super) fn label(&self) -> String {
        format!("spool {}", self.root.display())
    }

    /// The jobs in a directory; what was half written when the host died is removed.
    pub(super) fn list(&self, directory: Directory) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(directory.as_str()))? {
            let entry = entry?;
            let text = entry.file_name().to_string_lossy().into_owned();
            match Name::parse(&text) {
                Some(name) => names.push(name),
                None if text.ends_with(PARTIAL) => fs::remove_file(entry.path())?,
                None => {}
            }
        }
        Ok(names)
    }

    /// Returns when the job is on the disk for good: a crash at any moment leaves all of it or nothing.
    pub(super) fn create(&self, directory: Directory, name: &Name, body: &[u8]) -> io::Result<()> {
        let path = self.path(directory, name);
        let written = write_whole(&path, body).and_then(|()| self.sync(directory));
        if written.is_err() {
            // Nothing of a job that was refused may turn up later.
            let _ = fs::remove_file(partial(&path));
            let _ = fs::remove_file(&path);
        }
        written
    }

    /// Not synced: when the machine loses a change of state, the job is delivered once more, and replayed for free.
    pub(super) fn rename(&self, from: (Directory, &Name), to: (Directory, &Name)) -> io::Result<()> {
        fs::rename(self.path(from.0, from.1), self.path(to.0, to.1))
    }

    /// Reads a job that waits and moves it to `running/`. Read first: where there is no descriptor or memory for it, the job has
    /// not moved.
    pub(super) fn start(&self, waiting: &Name, running: &Name) -> io::Result<Vec<u8>> {
        let body = fs::read(self.path(Directory::Waiting, waiting))?;
        self.rename((Directory::Waiting, waiting), (Directory::Running, running))?;
        Ok(body)
    }

    /// Moves what was sent again to `waiting/`. Another process has written those files, and renames them in one step.
    ///
    /// What cannot be moved stays there, and holds nothing else up: a failure says why.
    pub(super) fn take_again(&self) -> (Vec<Name>, Option<io::Error>) {
        let names = match self.list(Directory::Again) {
            Ok(names) => names,
            Err(error) => return (Vec::new(), Some(error)),
        };
        let mut failed = None;
        let mut moved = Vec::with_capacity(names.len());
        for name in names {
            match self.rename((Directory::Again, &name), (Directory::Waiting, &name)) {
                Ok(()) => moved.push(name),
                Err(error) => failed = Some(error),
            }
        }
        (moved, failed)
    }

    /// Notes how a job ended, or removes what was noted.
    pub(super) fn note_end(&self, name: &Name, ended: Option<&str>) -> io::Result<()> {
        let path = self.root.join(ENDED).join(&name.unique);
        match ended {
            Some(ended) => write_whole(&path, ended.as_bytes()),
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// What was noted of a job's end.
    pub(super) fn end(&self, name: &Name) -> Option<Vec<u8>> {
        fs::read(self.root.join(ENDED).join(&name.unique)).ok()
    }

    /// Removes notes about jobs that are not there any more.
    pub(super) fn remove_old_ends(&self) -> io::Result<()> {
        let mut jobs = BTreeSet::new();
        for directory in Directory::ALL {
            jobs.extend(self.list(directory)?.into_iter().map(|name| name.unique));
        }
        for entry in fs::read_dir(self.root.join(ENDED))? {
            let entry = entry?;
            if !jobs.contains(&*entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes a file, moves it as a job is moved that is put back, and removes it.
    pub(super) fn probe(&self) -> io::Result<()> {
        let probe = |directory: Directory| self.root.join(directory.as_str()).join(format!("probe{PARTIAL}"));
        let written = fs::write(probe(Directory::Running), vec![0; PROBE_BYTES])
            .and_then(|()| fs::rename(probe(Directory::Running), probe(Directory::Waiting)));
        // What is left of it takes up room.
        let _ = fs::remove_file(probe(Directory::Running));
        written.and_then(|()| fs::remove_file(probe(Directory::Waiting)))
    }

    /// Whether the spool itself is still there.
    pub(super) fn is_there(&self) -> bool {
        [Directory::Waiting, Directory::Running].iter().all(|directory| self.root.join(directory.as_str()).is_dir())
    }

    pub(super) fn remove(&self, directory: Directory, name: &Name) -> io::Result<()> {
        fs::remove_file(self.path(directory, name))
    }

    /// The job goes to `dead/` and finds its reason there already, whole: a reader who sees the one can read the other.
    pub(super) fn bury(&self, name: &Name, reason: &str) -> io::Result<()> {
        // It waits no longer, and sent again it has all its attempts; and its reason's name has to fit.
        let mut dead = name.clone();
        dead.deferral = None;
        dead.attempt = 0;
        let directory = self.root.join(Directory::Dead.as_str());
        let written =
            write_by(&directory.join(format!("{}{PARTIAL}", name.unique)), &directory.join(reason_file(&dead)), reason);
        self.rename((Directory::Running, name), (Directory::Dead, &dead))?;
        // On a full disk it lies there without its reason, but is never delivered again.
        if let Err(error) = written {
            tracing::warn!(job_id = name.job_id, reason, %error, "the reason of a dead letter could not be written");
        }
        Ok(())
    }

    fn path(&self, directory: Directory, name: &Name) -> PathBuf {
        self.root.join(directory.as_str()).join(name.to_string())
    }

    /// A rename is on the disk when its directory is.
    fn sync(&self, directory: Directory) -> io::Result<()> {
        File::open(self.root.join(directory.as_str()))?.sync_all()
    }
}

/// The file next to a dead letter that says why it died.
pub(super) fn reason_file(dead: &Name) -> String {
    format!("reason~{dead}")
}

fn partial(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL);
    partial.into()
}

/// The file appears with all of its bytes, and those are on the disk.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_by(&partial(path), path, bytes)
}

/// As [`write_whole`], by way of a file of that name.
fn write_by(partial: &Path, path: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = File::create(partial)?;
    file.write_all(bytes.as_ref())?;
    file.sync_all()?;
    fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::job::trace::Trace;

    #[test]
    fn a_dead_letter_with_the_longest_id_has_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let trace = Trace::from_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert!(trace.is_some());
        let name = Name::new(&"i".repeat(128), trace, SystemTime::now());
        files.create(Directory::Running, &name, b"{}").unwrap();
        files.bury(&name, "it failed").unwrap();
        let reason = directory.path().join("dead").join(format!("reason~{name}"));
        assert_eq!(fs::read_to_string(reason).unwrap(), "it failed");
        assert_eq!(files.list(Directory::Dead).unwrap(), [name]);
    }
}
