//! Images of 300 jobs through the real binary, against those of diffusers that `tests/conformance` keeps.

use std::process::Command;

use tokio::task::spawn_blocking;

use crate::servers::python_or_skip;

#[tokio::test]
async fn every_stored_reference_is_generated_again() {
    let Some(venv) = python_or_skip("300 jobs against images of diffusers") else { return };
    let mut command = Command::new(venv.join("bin/python"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["tests/conformance", env!("CARGO_BIN_EXE_atelier"), "stored"]);
    let ended = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let table = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{table}{}", String::from_utf8_lossy(&ended.stderr));
    let summary = table.lines().last().unwrap_or_default();
    assert!(summary.contains("jobs agree"), "{table}");
}

/// Memory at its peak, memory touched anew, and requests to the bucket, each bounded.
#[tokio::test]
async fn files_that_are_made_to_cost_cost_nothing() {
    let Some(venv) = python_or_skip("files that are made to cost") else { return };
    let mut command = Command::new(venv.join("bin/python"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args(["tests/conformance", env!("CARGO_BIN_EXE_atelier"), "hostile"]);
    let ended = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let table = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{table}{}", String::from_utf8_lossy(&ended.stderr));
    assert!(table.ends_with("18 of 18 within the bounds\n"), "{table}");
}

#[tokio::test]
async fn a_reference_that_is_another_image_is_reported() {
    let Some(venv) = python_or_skip("a job against the image of another") else { return };
    let mut command = Command::new(venv.join("bin/python"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // A program that generates nothing.
    command.args(["tests/conformance", "/bin/true", "stored"]);
    let ended = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let table = String::from_utf8_lossy(&ended.stdout);
    assert!(!ended.status.success() && table.contains("\n0 of "), "{table}");
}
