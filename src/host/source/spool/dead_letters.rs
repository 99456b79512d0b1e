//! The spool's directory `dead/`, gone through while a host may be using the spool.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use super::Settings;
use super::files::{Directory, reason_file};
use super::name::Name;
use crate::clock::later;
use crate::host::source::SourceError;
use crate::host::source::dead_letters::{DeadLetter, DeadLetters, Decision, Operator};

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
            let file = dead.join(name.to_string());
            let reason = dead.join(reason_file(&name));
            // Somebody else may be going through them as well.
            let Some(letter) = dead_letter(&name, &file, &reason)? else { continue };
            match operator.decide(&letter) {
                Decision::Keep => continue,
                Decision::SendAgain => {
                    let again = self.directory(Directory::Again);
                    fs::create_dir_all(&again)?;
                    unless_gone(fs::rename(&file, again.join(name.to_string())))?;
                }
                Decision::Remove => unless_gone(fs::remove_file(&file))?,
            }
            unless_gone(fs::remove_file(&reason))?;
            operator.done(&letter);
        }
        Ok(())
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

/// None: it is not there any more.
fn dead_letter(name: &Name, file: &Path, reason: &Path) -> io::Result<Option<DeadLetter>> {
    let body = match fs::read(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        body => body?,
    };
    let reason = fs::read_to_string(reason).ok();
    let sent = Some(later(SystemTime::UNIX_EPOCH, Duration::from_millis(name.sent_ms)));
    Ok(Some(DeadLetter { reason, sent, ..DeadLetter::new(name.unique.clone(), body) }))
}

fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
