//! OpenAI's own clients against `atelier host`, whose handler generates with the bundled model.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::task::spawn_blocking;

use crate::host::HostProcess;
use crate::servers::{environment, left_out, python_or_skip};
use crate::stage::TOKEN;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

async fn passes(mut command: Command) {
    // A proxy of this machine is none for loopback.
    command.env("NO_PROXY", "127.0.0.1").stdin(Stdio::null());
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.0.trim() == "all of it", "{}\n{}", said.0, said.1);
}

#[tokio::test]
async fn the_python_client_works_unchanged() {
    let Some(venv) = python_or_skip("OpenAI's Python client against /v1") else { return };
    // Images are checked here: then there are no previews, which the other client gets.
    let host = HostProcess::start(&[("ATELIER__SAFETY__MODE", "on")], &[]).await;
    host.ready().await;
    let mut command = Command::new(venv.join("bin/python"));
    command.arg(script("openai_images.py")).args([&format!("http://{}", host.address()), TOKEN]);
    passes(command).await;
}

#[tokio::test]
async fn the_node_client_works_unchanged() {
    let Some(node) = environment("ATELIER_TEST_NODE").map(PathBuf::from) else {
        return left_out("OpenAI's Node client against /v1", "no npm; else tests/run sets ATELIER_TEST_NODE");
    };
    let host = HostProcess::start(&[], &[]).await;
    host.ready().await;
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.png");
    image::RgbImage::from_fn(96, 128, |x, y| image::Rgb([200, x as u8, y as u8])).save(&image).unwrap();
    let mut command = Command::new("node");
    command.arg(script("openai_images.mjs")).args([&format!("http://{}", host.address()), TOKEN]).arg(&image);
    command.env("ATELIER_TEST_NODE", node);
    passes(command).await;
}
