//! Whether the spool's directory can be written to, and how much fits into it; a host may be using it meanwhile.

use std::fs;
use std::io;

use uuid::Uuid;

use super::Settings;

/// Bytes that are free where the spool lies. Makes the directory, as the host would.
///
/// # Errors
/// When nothing can be written there.
pub fn inspect(settings: &Settings) -> io::Result<u64> {
    fs::create_dir_all(&settings.directory)?;
    let probe = settings.directory.join(format!(".doctor-{}", Uuid::new_v4()));
    let written = fs::write(&probe, b"atelier doctor");
    let removed = fs::remove_file(&probe);
    written.and(removed)?;
    let room = rustix::fs::statvfs(&settings.directory)?;
    Ok(room.f_bavail * room.f_frsize)
}
