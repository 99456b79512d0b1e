//! What tests need of Debian's packages: installed, or unpacked by `tests/servers.sh` at `ATELIER_TEST_SERVERS`.

use std::path::PathBuf;
use std::process::Command;

use super::{environment, left_out};

/// Where a file of a package lies; `file` is relative to `/`.
pub(crate) fn path(file: &str) -> PathBuf {
    let root = environment("ATELIER_TEST_SERVERS").filter(|root| !root.is_empty());
    PathBuf::from(root.unwrap_or_else(|| "/".into())).join(file)
}

/// The library that shows programs another time.
pub(crate) fn faketime() -> PathBuf {
    path(&format!("usr/lib/{}-linux-gnu/faketime/libfaketimeMT.so.1", std::env::consts::ARCH))
}

/// A program of a package, with what it needs where it was only unpacked: other programs, libraries, its configuration.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(path(program));
    command.envs(variables());
    command
}

/// What such a program finds them by.
pub(crate) fn variables() -> [(&'static str, String); 3] {
    let list = |files: [&str; 2]| files.map(|file| path(file).display().to_string()).join(":");
    let libraries = std::env::consts::ARCH.to_owned() + "-linux-gnu";
    [
        ("PATH", format!("{}:/usr/bin:/bin", list(["usr/bin", "usr/sbin"]))),
        ("LD_LIBRARY_PATH", list([&format!("usr/lib/{libraries}"), &format!("lib/{libraries}")])),
        ("OPENSSL_CONF", path("etc/ssl/openssl.cnf").display().to_string()),
    ]
}

/// Whether all of `files` are there; if not, the test is left out, in words, unless `ATELIER_REQUIRE_ALL` is set: then it fails.
pub(crate) fn are_there(what: &str, files: &[PathBuf]) -> bool {
    let Some(missing) = files.iter().find(|file| !file.exists()) else { return true };
    let how =
        "run `tests/servers.sh DIR` and set ATELIER_TEST_SERVERS=DIR, or install rabbitmq-server, openssl, faketime and curl";
    assert!(environment("ATELIER_REQUIRE_ALL").is_none(), "{what} needs {}: {how}", missing.display());
    left_out(what, &format!("{} is missing: {how}", missing.display()));
    false
}
