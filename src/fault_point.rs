//! Named points of a job's life at which a fault campaign holds the process, to break something exactly there.
//!
//! `ATELIER_FAULT_POINT={directory}/{name}` arms one point. The first process that comes there writes its process id to
//! `{name}.reached` in that directory and waits for `{name}.go`; everybody else passes. Builds without debug assertions have none.

/// Where the points are: their names, and which process comes by.
#[cfg(debug_assertions)]
pub const POINTS: [(&str, Process); 9] = [
    ("before-send", Process::Host),
    ("after-send", Process::Host),
    ("received", Process::Host),
    ("before-images", Process::Handler),
    ("before-record", Process::Handler),
    ("after-record", Process::Handler),
    ("before-tell", Process::Host),
    ("after-tell", Process::Host),
    ("after-ack", Process::Host),
];

/// Who does the work at a point.
#[cfg(debug_assertions)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    Host,
    Handler,
}

#[cfg(debug_assertions)]
static ARMED: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

/// Arms the point that this path names.
#[cfg(debug_assertions)]
pub fn arm(point: &str) {
    // Armed once; a second word changes nothing.
    let _ = ARMED.set(point.into());
}

/// Waits here if this is the armed point and nobody came by before.
#[cfg(debug_assertions)]
pub(crate) async fn reach(name: &str) {
    let Some(armed) = ARMED.get().filter(|armed| armed.file_name().is_some_and(|file| file == name)) else { return };
    let reached = armed.with_extension("reached");
    let mut new = std::fs::OpenOptions::new();
    let Ok(mut file) = new.write(true).create_new(true).open(&reached) else { return };
    // Whoever waits for the file reads the process id from it.
    let _ = std::io::Write::write_all(&mut file, std::process::id().to_string().as_bytes());
    let go = armed.with_extension("go");
    while !go.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// A point of the name that it is given.
#[cfg(debug_assertions)]
macro_rules! fault_point {
    ($name:literal) => {
        $crate::fault_point::reach($name).await
    };
}

#[cfg(not(debug_assertions))]
macro_rules! fault_point {
    ($name:literal) => {};
}

pub(crate) use fault_point;
