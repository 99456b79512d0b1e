//! `atelier models` as a process of its own: what it prints, and a pull that is killed at the worst moment.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::{UNET, checkpoint, checksum, hub_of, parts, path};
use crate::servers::DEADLINE;
use crate::servers::hub::{COMMIT, Fault, Hub, REPOSITORY};

pub(super) fn atelier(directory: &Path, hub: &Hub, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.args(["models"]).args(arguments).current_dir(directory).env_clear();
    command.env("HF_ENDPOINT", format!("http://{}", hub.address)).env("ATELIER_MODEL", "sd15");
    command
}

pub(super) async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("runs")
}

/// Standard output, then standard error.
pub(super) fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A directory with a manifest that knows the hub, `more` under its `source`.
fn directory_with(more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("models")).expect("a directory");
    write_manifest(directory.path(), more);
    directory
}

fn write_manifest(directory: &Path, more: &str) {
    let manifest = include_str!("../../../models/tiny-sd.yaml").replace("checkpoint: tiny-sd", "checkpoint: sd15");
    let manifest = format!("{manifest}\nsource:\n  hub: {REPOSITORY}\n{more}");
    fs::write(directory.join("models/sd15.yaml"), manifest).expect("writes");
}

#[tokio::test]
async fn pull_prints_what_pins_it_and_verify_names_what_differs() {
    let hub = hub_of(&checkpoint()).await;
    let directory = directory_with("");
    let listed = printed(&output(atelier(directory.path(), &hub, &["list"])).await);
    assert!(listed.starts_with("* sd15 ") && listed.contains("absent  from hub ada/images@main"), "{listed}");
    let pulled = output(atelier(directory.path(), &hub, &["pull"])).await;
    let text = printed(&pulled);
    assert!(pulled.status.success(), "{text}");
    let (_, keys) = text.split_once("put this under `source:`\n").expect("the keys");
    assert!(keys.starts_with(&format!("  revision: {COMMIT}\n  files:\n")), "{keys}");

    write_manifest(directory.path(), keys);
    let again = printed(&output(atelier(directory.path(), &hub, &["pull"])).await);
    assert!(again.contains("12 files are right, 0 of them pulled now") && !again.contains("under `source:`"), "{again}");
    let verified = output(atelier(directory.path(), &hub, &["verify"])).await;
    assert!(verified.status.success() && printed(&verified).contains("sd15: 12 of 12 files are right"));

    let checkpoint = directory.path().join("models/sd15");
    let mut weights = fs::read(checkpoint.join(UNET)).expect("there");
    weights[5000] ^= 1;
    fs::write(checkpoint.join(UNET), &weights).expect("writes");
    fs::remove_file(checkpoint.join("vae/config.json")).expect("removes");
    let verified = output(atelier(directory.path(), &hub, &["verify", "sd15"])).await;
    let text = printed(&verified);
    assert!(!verified.status.success(), "{text}");
    assert!(text.contains(&format!("{UNET}: differs: it has the SHA-256 {}", checksum(&weights))), "{text}");
    assert!(text.contains("vae/config.json: missing") && text.contains("10 of 12 files are right"), "{text}");
    let listed = printed(&output(atelier(directory.path(), &hub, &["list"])).await);
    assert!(listed.contains("11 of 12 files there"), "{listed}");

    let offline = output(atelier(directory.path(), &hub, &["pull", "--offline"])).await;
    assert!(!offline.status.success() && printed(&offline).contains("offline, and vae/config.json"), "{}", printed(&offline));
    let mended = printed(&output(atelier(directory.path(), &hub, &["pull"])).await);
    assert!(mended.contains("12 files are right, 2 of them pulled now"), "{mended}");
}

#[tokio::test]
async fn a_wrong_manifest_or_name_is_reported_in_words() {
    let hub = hub_of(&[]).await;
    let directory = directory_with("  s3: s3://both/\n");
    let text = printed(&output(atelier(directory.path(), &hub, &["pull"])).await);
    assert!(text.contains("models/sd15.yaml: source: must name exactly one of"), "{text}");
    let listed = output(atelier(directory.path(), &hub, &["list"])).await;
    assert!(listed.status.success() && printed(&listed).contains("exactly one of"), "a list shows the others all the same");
    let text = printed(&output(atelier(directory.path(), &hub, &["pull", "../etc"])).await);
    assert!(text.contains("MODEL: must be 1 to 64 of the characters"), "{text}");
    fs::write(directory.path().join("models/bare.yaml"), include_str!("../../../models/tiny-sd.yaml")).expect("writes");
    let text = printed(&output(atelier(directory.path(), &hub, &["verify", "bare"])).await);
    assert!(text.contains("bare.yaml: has no `source`; name where its files come from"), "{text}");
}

/// Killed when all bytes are there and the name is not: nothing is fetched twice, nothing is believed unverified.
#[tokio::test]
async fn a_pull_killed_before_the_rename_is_ended_by_the_next() {
    let hub = hub_of(&checkpoint()).await;
    let directory = directory_with("");
    let checkpoint = directory.path().join("models/sd15");
    let weights = hub.get(UNET);
    hub.fail(UNET, &[Fault::StallAfter(weights.len() - 1)]);
    let mut pulling = atelier(directory.path(), &hub, &["pull"]).stdout(Stdio::null()).spawn().expect("starts");
    let deadline = Instant::now() + DEADLINE;
    let half = loop {
        let came = parts(&checkpoint, UNET)
            .into_iter()
            .find(|part| fs::metadata(part).is_ok_and(|about| about.len() == weights.len() as u64 - 1));
        if let Some(part) = came {
            break part;
        }
        assert!(Instant::now() < deadline, "the bytes did not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    pulling.kill().expect("killed");
    pulling.wait().expect("ended");
    assert!(!checkpoint.join(UNET).exists());
    let mut file = fs::OpenOptions::new().append(true).open(half).expect("opens");
    file.write_all(&weights[weights.len() - 1..]).expect("writes");
    drop(file);

    hub.take_asked();
    let pulled = output(atelier(directory.path(), &hub, &["pull"])).await;
    assert!(pulled.status.success(), "{}", printed(&pulled));
    assert!(printed(&pulled).contains(&format!("{UNET}: pulled, went on with what was there")), "{}", printed(&pulled));
    assert_eq!(fs::read(path(UNET).under(&checkpoint)).expect("there"), weights);
    assert!(hub.take_asked().0.iter().all(|asked| asked.path != UNET), "all of it was there");
    assert!(parts(&checkpoint, UNET).is_empty());
}
