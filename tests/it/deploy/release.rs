//! What the release workflow runs: the notes of a version, and the archive with its program.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use super::file;

fn script(root: &Path, name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(root.join("deploy/release").join(name));
    command.args(arguments).env("ATELIER_BINARY", env!("CARGO_BIN_EXE_atelier")).env_remove("CUDA_COMPUTE_CAP");
    command.output().unwrap()
}

fn said(output: &Output) -> (bool, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// Only a version that Cargo.toml and the changelog agree on is released, with what the changelog says of it.
#[test]
fn a_tag_is_released_with_its_notes_or_not_at_all() {
    let copy = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = copy.path().join("deploy/release");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(root.join("deploy/release/notes.sh"), directory.join("notes.sh")).unwrap();
    let write = |changelog: &str| {
        std::fs::write(copy.path().join("Cargo.toml"), "[package]\nversion = \"1.2.0\"\n[other]\nversion = \"9.9.9\"\n")
            .unwrap();
        std::fs::write(copy.path().join("CHANGELOG.md"), changelog).unwrap();
    };
    let notes = |tag: &str| said(&script(copy.path(), "notes.sh", &[tag]));
    write("# Changelog\n\n## 1.2.0 (2026-12-01)\n\n- New.\n\n## 1.1.0 (2026-11-01)\n\n- Old.\n");
    assert_eq!(notes("v1.2.0"), (true, "\n- New.\n\n".to_owned(), String::new()));
    let (is_released, _, error) = notes("v1.1.0");
    assert!(!is_released && error.contains("the tag must be v1.2.0"), "{error}");
    let (is_released, _, error) = notes("1.2.0");
    assert!(!is_released && error.contains("the tag must be v1.2.0"), "{error}");
    write("# Changelog\n\n## 1.2.0 (not released yet)\n\n- New.\n");
    let (is_released, _, error) = notes("v1.2.0");
    assert!(!is_released && error.contains("write the day of the release, `## 1.2.0 (YYYY-MM-DD)`"), "{error}");
    write("# Changelog\n\n## 1.2.0.1 (2026-12-01)\n");
    let (is_released, _, error) = notes("v1.2.0");
    assert!(!is_released && error.contains("has no heading"), "{error}");
}

#[test]
fn an_archive_has_the_program_and_what_its_users_read() {
    let to = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let destination = to.path().to_str().unwrap();
    let (is_made, path, error) = said(&script(root, "archive.sh", &["cpu", destination]));
    assert!(is_made, "{error}");
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("atelier-{version}-linux-{}-cpu", std::env::consts::ARCH);
    assert_eq!(path, format!("{destination}/{name}.tar.gz\n"));
    let unpacked =
        Command::new("tar").args(["--extract", "--gzip", "--file", path.trim(), "--directory", destination]).status();
    assert!(unpacked.unwrap().success());
    let program = to.path().join(&name).join("atelier");
    let printed = Command::new(program).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&printed.stdout).contains(version), "{printed:?}");
    for file in ["LICENSE", "THIRD-PARTY-LICENSES", "config.yaml", "atelier.1", "completions/_atelier", "models/sd15.yaml"] {
        assert!(to.path().join(&name).join(file).is_file(), "{file}");
    }
    let (is_made, _, error) = said(&script(root, "archive.sh", &["gpu", destination]));
    assert!(!is_made && error.contains("no such flavour: gpu; cpu or cuda"), "{error}");
}

/// The workflow's steps call scripts that are there, with the Rust and the CUDA of the image.
#[test]
fn the_workflow_calls_what_is_there() {
    let workflow = file(".github/workflows/release.yml");
    let scripts: BTreeSet<&str> = workflow
        .split_whitespace()
        .filter(|word| word.starts_with("deploy/release/") && word.len() > "deploy/release/".len())
        .collect();
    assert_eq!(scripts, BTreeSet::from(["deploy/release/archive.sh", "deploy/release/notes.sh"]));
    let dockerfile = file("Dockerfile");
    let argument = |name: &str| dockerfile.lines().find_map(|line| line.strip_prefix(&format!("ARG {name}="))).unwrap();
    let rust = argument("RUST");
    let cuda = argument("CUDA");
    assert!(workflow.contains(&format!("rust:{rust}-bookworm")) && workflow.contains(&format!("--default-toolchain {rust}\n")));
    assert_eq!(workflow.matches(&format!("nvidia/cuda:{cuda}-cudnn-devel-ubuntu24.04")).count(), 3);
}
