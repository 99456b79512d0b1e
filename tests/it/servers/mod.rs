//! Real servers on loopback for the tests: S3, RabbitMQ, a scripted HTTP server, and programs out of the Python venv.

pub(crate) mod http;
pub(crate) mod hub;
pub(crate) mod moto;
pub(crate) mod packages;
pub(crate) mod proxy;
pub(crate) mod rabbitmq;
pub(crate) mod s3;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

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

/// What a script says to a question on its standard input.
pub(crate) fn ask_python(venv: &Path, script: &str, question: &Value) -> String {
    let mut python = Command::new(venv.join("bin/python"))
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python of the venv");
    python.stdin.take().expect("its stdin").write_all(question.to_string().as_bytes()).expect("written");
    let answer = python.wait_with_output().expect("an answer");
    String::from_utf8_lossy(&answer.stdout).into_owned()
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
