//! The README's first command.

use std::path::Path;
use std::process::Command;

#[test]
fn the_demo_generates_stores_and_reports() {
    let out = tempfile::tempdir().unwrap();
    let demo = Command::new(env!("CARGO_BIN_EXE_atelier"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["demo", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&demo.stdout);
    let log = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success(), "{shown}\n{log}");
    let generated =
        ["demo-plain-0", "demo-lora-0", "demo-four-0", "demo-four-1", "demo-four-2", "demo-four-3"].map(|name| (name, 128));
    // A result, and next to the person whom it was made of.
    let tried_on = [("demo-tryon-0", 96), ("demo-tryon-1", 2 * 96), ("demo-mask-0", 96), ("demo-mask-1", 2 * 96)];
    for (name, width) in generated.into_iter().chain(tried_on).chain([("contact-sheet", 128)]) {
        let image =
            image::open(out.path().join(format!("{name}.png"))).unwrap_or_else(|error| panic!("{name}: {error}\n{shown}"));
        assert!(image.width() >= width, "{name}");
    }
    // Signed by its own key, and trusted by who trusts its root.
    for name in ["demo-plain-0", "demo-tryon-0"] {
        let image = out.path().join(format!("{name}.png"));
        let mut inspect = Command::new(env!("CARGO_BIN_EXE_atelier"));
        inspect.arg("inspect").arg(image).arg("--trust-anchors").arg(out.path().join("signer/root.pem"));
        let inspected = inspect.output().unwrap();
        let found = String::from_utf8_lossy(&inspected.stdout);
        assert!(inspected.status.success() && found.contains("credentials  trusted: "), "{name}: {found}");
    }
    for job in ["demo-plain", "demo-lora", "demo-four", "demo-tryon", "demo-mask"] {
        assert!(out.path().join(format!("s3/atelier-demo/generations/{job}/result.json")).exists(), "{job}");
        assert!(shown.contains(&format!("webhook POST /api/webhooks/inference/complete  {job}")), "{job}: {shown}");
    }
    assert!(shown.contains("10 images and contact-sheet.png"), "{shown}");
    assert!(shown.ends_with("with --serve it opens a page to try it yourself, at http://127.0.0.1:9446/\n"), "{shown}");
}

/// The binary by itself, in an empty directory, with an empty cache directory.
fn alone(empty: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_atelier"));
    command.current_dir(empty).env_clear().env("XDG_CACHE_HOME", empty.join("cache")).args(arguments);
    command
}

#[test]
fn the_binary_alone_has_all_that_the_demo_needs() {
    let empty = tempfile::tempdir().unwrap();
    let demo = alone(empty.path(), &["demo"]).output().unwrap();
    let shown = String::from_utf8_lossy(&demo.stdout);
    let log = String::from_utf8_lossy(&demo.stderr);
    assert!(demo.status.success() && shown.contains("10 images and contact-sheet.png"), "{shown}\n{log}");
    let cached: Vec<_> =
        std::fs::read_dir(empty.path().join("cache/atelier")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(cached.len(), 2, "the models and the lock: {cached:?}");
    let list = alone(empty.path(), &["models", "list"]).output().unwrap();
    let shown = String::from_utf8_lossy(&list.stdout);
    assert!(shown.contains("* tiny-sd") && shown.contains("tiny-edit") && shown.contains("there"), "{shown}");
}

#[test]
fn a_model_that_is_nowhere_is_answered_with_every_place_that_was_looked_at() {
    let empty = tempfile::tempdir().unwrap();
    let verify = |home: &str| {
        let mut command = alone(empty.path(), &["models", "verify", "big"]);
        let output = command.env("ATELIER_HOME", home).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let places = "models/big.yaml, /opt/atelier/models/big.yaml, the bundled models (tiny-edit, tiny-sd)";
    let said = verify("/opt/atelier");
    assert!(said.contains("`big`") && said.contains(places), "{said}");
    assert!(verify("").contains("models/big.yaml, $ATELIER_HOME/models (not set), the bundled"), "{}", verify(""));
    // A place that has it comes before the program.
    let home = empty.path().join("home/models");
    std::fs::create_dir_all(&home).unwrap();
    std::fs::write(home.join("tiny-sd.yaml"), "family: stable-diffusion-1\ncheckpoint: nothing-here\n").unwrap();
    let list = alone(empty.path(), &["models", "list"]).env("ATELIER_HOME", empty.path().join("home")).output().unwrap();
    let shown = String::from_utf8_lossy(&list.stdout);
    let line = shown.lines().find(|line| line.contains("tiny-sd")).unwrap();
    assert!(line.contains("absent"), "{shown}");
    // No place to unpack at.
    let demo = alone(empty.path(), &["demo"]).env("XDG_CACHE_HOME", "/proc/none").output().unwrap();
    let said = String::from_utf8_lossy(&demo.stderr);
    assert!(!demo.status.success() && said.contains("/proc/none/atelier") && said.contains("XDG_CACHE_HOME"), "{said}");
}

#[test]
fn a_bundled_model_is_verified_by_the_program_itself() {
    let empty = tempfile::tempdir().unwrap();
    let verify = || alone(empty.path(), &["models", "verify", "tiny-sd"]).output().unwrap();
    let verified = verify();
    let shown = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success() && shown.contains("files are right"), "{shown}{verified:?}");
    let models = std::fs::read_dir(empty.path().join("cache/atelier")).unwrap().map(|entry| entry.unwrap().path());
    let models = models.into_iter().find(|path| path.is_dir()).unwrap();
    let file = models.join("tiny-sd/unet/config.json");
    let mut bytes = std::fs::read(&file).unwrap();
    // As long as before: a change of length would have it unpacked again.
    bytes[0] = b' ';
    std::fs::write(&file, bytes).unwrap();
    let differs = verify();
    let shown = String::from_utf8_lossy(&differs.stdout);
    assert!(!differs.status.success() && shown.contains("unet/config.json: differs"), "{shown}{differs:?}");
}

/// `atelier ... | head -0`: the reader is gone before the first byte.
#[test]
fn a_reader_who_has_read_enough_is_no_error() {
    let empty = tempfile::tempdir().unwrap();
    for arguments in [&["completions", "bash"][..], &["manual"], &["models", "list"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = alone(empty.path(), arguments).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said.is_empty(), "{arguments:?}: {:?} {said}", ended.status);
    }
}
