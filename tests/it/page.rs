//! The page of `atelier host` in a real Chromium, over hosts whose handlers generate with the bundled models.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::task::spawn_blocking;

use crate::host::HostProcess;
use crate::servers::{environment, left_out};
use crate::stage::TOKEN;

/// Debian's package has it there; one of your own is named by `ATELIER_TEST_CHROMIUM`.
fn chromium() -> PathBuf {
    environment("ATELIER_TEST_CHROMIUM").map_or_else(|| "/usr/bin/chromium".into(), PathBuf::from)
}

/// Where npm has put what drives it; none: the tests of the page are left out, in words.
fn packages_or_skip(what: &str) -> Option<PathBuf> {
    let Some(node) = environment("ATELIER_TEST_NODE").map(PathBuf::from) else {
        left_out(what, "no npm; else tests/run sets ATELIER_TEST_NODE");
        return None;
    };
    if !chromium().exists() {
        left_out(what, "no Chromium: install the package chromium, or name yours by ATELIER_TEST_CHROMIUM");
        return None;
    }
    Some(node)
}

/// A host of both models, each with one handler, that signs.
async fn host(handlers: usize) -> HostProcess {
    let signer = tempfile::tempdir().unwrap().keep();
    let models = "[{name: tiny-sd, handlers: 1}, {name: tiny-edit, handlers: 1}]";
    let changes =
        [("ATELIER__HOST__MODELS", models), ("ATELIER__CONTENT_CREDENTIALS__DEVELOPMENT_DIRECTORY", signer.to_str().unwrap())];
    let mut host = HostProcess::start(&changes, &[]).await;
    host.wait_for("a handler is ready", handlers).await;
    host.ready().await;
    host
}

async fn passes(node: &Path, scenario: &str, host: &HostProcess, given: &str) {
    let mut command = Command::new("node");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/page.mjs"));
    command.args([scenario, &format!("http://{}", host.address()), TOKEN, given]);
    // A proxy of this machine is none for loopback.
    command.env("NO_PROXY", "127.0.0.1").env("ATELIER_TEST_NODE", node).env("ATELIER_TEST_CHROMIUM", chromium());
    let output = spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap()).await.unwrap();
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.0.trim() == "all of it", "{scenario}: {}\n{}\n{}", said.0, said.1, host.log());
}

#[tokio::test]
async fn the_token_is_asked_for_once_and_images_are_made() {
    let Some(node) = packages_or_skip("the page in Chromium: token, generate, try-on, edit") else { return };
    let host = host(2).await;
    for scenario in ["token", "generate", "tryon"] {
        passes(&node, scenario, &host, "").await;
    }
}

#[tokio::test]
async fn a_job_is_seen_while_it_runs_and_cancelled_and_found_again_after_a_reload() {
    let Some(node) = packages_or_skip("the page in Chromium: preview, cancel, reload") else { return };
    let host = host(2).await;
    for scenario in ["cancel", "reload"] {
        passes(&node, scenario, &host, "").await;
    }
}

#[tokio::test]
async fn a_handler_that_is_killed_is_told_of_and_the_image_comes_all_the_same() {
    let Some(node) = packages_or_skip("the page in Chromium: a handler crashes") else { return };
    let host = host(2).await;
    let started = host.logged("a handler was started");
    let of_text = started.iter().find(|line| line["handler"] == 0).unwrap();
    passes(&node, "crash", &host, &of_text["pid"].to_string()).await;
}

/// `ATELIER_WRITE_DOCS` set: the screenshots of docs/page.md are taken anew.
#[tokio::test]
async fn every_view_is_accessible_light_and_dark_on_a_desktop_and_on_a_phone() {
    let Some(node) = packages_or_skip("the page in Chromium: axe-core, phone width") else { return };
    let screenshots = environment("ATELIER_WRITE_DOCS").map(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/docs/images"));
    passes(&node, "views", &host(2).await, screenshots.unwrap_or_default()).await;
}
