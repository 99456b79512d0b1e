//! The spool's directory `dead/`, gone through while a host may be using the spool.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::Settings;
use super::files::{Directory, reason_file};
use super::name::Name;
use crate::clock::later;
use crate::host::source::SourceError;
use crate::host::source::dead_letters::{DeadLetter, DeadLetters, Decision, Operator};
use crate::job::JobId;

/// The jobs of a spool that failed for good.
pub struct SpoolDeadLetters {
    root: PathBuf,
    place: String,
}

impl SpoolDeadLetters {
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let place = settings.directory.join(Directory::Dead.as_str()).display().to_string();
        Self { root: settings.directory.clone(), place }
    }

    /// Whether there was ever a job that failed for good, or could be.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.directory(Directory::Dead).is_dir()
    }

    fn directory(&self, directory: Directory) -> PathBuf {
        self.root.join(directory.as_str())
    }

    fn walk(&self, operator: &mut dyn Operator) -> io::Result<()> {
        let dead = self.directory(Directory::Dead);
        let entries = fs::read_dir(&dead)?.collect::<io::Result<Vec<_>>>()?;
        let mut names: Vec<Name> =
            entries.iter().filter_map(|entry| Name::parse(&entry.file_name().to_string_lossy())).collect();
        names.sort();
        for name in names {
            let letter = self.read(&name);
            // Somebody else may be going through them as well.
            let Some(letter) = self.unless_gone(letter, &name, operator) else { continue };
            let done = match operator.decide(&letter) {
                Decision::Keep => continue,
                Decision::SendAgain => self.send_again(&name),
                Decision::Remove => fs::remove_file(self.dead(&name)),
            };
            if self.unless_gone(done, &name, operator).is_some() {
                let _ = fs::remove_file(dead.join(reason_file(&name)));
                operator.done(&letter);
            }
        }
        Ok(())
    }

    fn dead(&self, name: &Name) -> PathBuf {
        self.directory(Directory::Dead).join(name.to_string())
    }

    fn send_again(&self, name: &Name) -> io::Result<()> {
        let again = self.directory(Directory::Again);
        if !again.is_dir() {
            fs::create_dir_all(&again)?;
            // The host is to move what is in there, also where root has made it.
            let owner = fs::metadata(self.directory(Directory::Dead))?;
            if fs::metadata(&again)?.uid() != owner.uid() {
                chown(&again, Some(owner.uid()), Some(owner.gid()))?;
            }
        }
        fs::rename(self.dead(name), again.join(name.to_string()))
    }

    fn read(&self, name: &Name) -> io::Result<DeadLetter> {
        let body = fs::read(self.dead(name))?;
        let reason = fs::read_to_string(self.directory(Directory::Dead).join(reason_file(name))).ok();
        Ok(DeadLetter { reason, ..DeadLetter::new(name.unique.clone(), body) }.of(name))
    }

    /// None where it is not there any more, or where the operator was told what is wrong with it.
    fn unless_gone<T>(&self, done: io::Result<T>, name: &Name, operator: &mut dyn Operator) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let queue = self.dead(name).display().to_string();
                let unavailable = SourceError::Unavailable { queue, action: "go through", problem: error.to_string() };
                operator.failed(&DeadLetter::new(name.unique.clone(), Vec::new()).of(name), &unavailable);
                None
            }
        }
    }
}

impl DeadLetter {
    /// With what the name of its file says.
    fn of(self, name: &Name) -> Self {
        let sent = Some(later(SystemTime::UNIX_EPOCH, Duration::from_millis(name.sent_ms)));
        Self { sent, job_id: JobId::new(&name.job_id).ok().or(self.job_id), ..self }
    }
}

#[async_trait]
impl DeadLetters for SpoolDeadLetters {
    fn source(&self) -> &'static str {
        "spool"
    }

    fn place(&self) -> &str {
        &self.place
    }

    async fn go_through(&self, operator: &mut dyn Operator) -> Result<(), SourceError> {
        self.walk(operator).map_err(|problem| SourceError::Unavailable {
            queue: self.place.clone(),
            action: "go through",
            problem: problem.to_string(),
        })
    }
}
