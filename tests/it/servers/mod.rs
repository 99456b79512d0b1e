//! Real servers on loopback for the tests: S3, RabbitMQ, a scripted HTTP server, and programs out of the Python venv.

pub(crate) mod http;
pub(crate) mod hub;
pub(crate) mod moto;
pub(crate) mod packages;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod s3;

use std::path::PathBuf;
use std::time::Duration;

/// Long enough for a loaded machine; a test that waits this long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The venv that `tests/venv.sh` makes, named by `ATELIER_TEST_VENV`. Without it the test is left out, in words, unless
/// `ATELIER_REQUIRE_ALL` is set: then it fails.
pub(crate) fn python_or_skip(what: &str) -> Option<PathBuf> {
    if let Some(venv) = environment("ATELIER_TEST_VENV") {
        return Some(venv.into());
    }
    assert!(
        environment("ATELIER_REQUIRE_ALL").is_none(),
        "{what} needs Python packages: run `tests/venv.sh DIR` and set ATELIER_TEST_VENV=DIR"
    );
    left_out(what, "run `tests/venv.sh DIR` and set ATELIER_TEST_VENV=DIR");
    None
}

/// Says that a test did not run, and why.
pub(crate) fn left_out(what: &str, why: &str) {
    say(&format!("left out: {what} ({why})"));
}

/// Past the test harness, which would hold back what a passing test prints.
fn say(line: &str) {
    use std::io::Write as _;
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "{line}").expect("stderr");
}

#[expect(clippy::disallowed_methods, reason = "config.rs reads the environment of the product; this is about the tests")]
pub(crate) fn environment(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}
