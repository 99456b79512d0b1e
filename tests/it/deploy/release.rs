//! What the release workflow runs: the notes of a version, the archive with its program, its bill of materials, the names of images.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::file;
use super::licences::linked;

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

/// Every crate that the program is linked with, as crates.io and Cargo.lock have it.
#[test]
fn a_bill_of_materials_names_every_packageof_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (is_made, text, error) = said(&script(root, "sbom.py", &["cpu"]));
    assert!(is_made, "{error}");
    let bill: Value = serde_json::from_str(&text).unwrap();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let components = bill["components"].as_array().unwrap();
    let program = &bill["metadata"]["component"];
    let named = components.iter().chain([program]);
    let mut named: Vec<String> =
        named.map(|package| format!("{} {}", word(&package["name"]), word(&package["version"]))).collect();
    named.sort();
    assert_eq!(named, linked());
    let lock = file("Cargo.lock");
    for component in components {
        let name = word(&component["name"]);
        assert!(!word(&component["licenses"][0]["expression"]).is_empty(), "{component}");
        let checksum = word(&component["hashes"][0]["content"]);
        let is_locked = lock.contains(&format!("checksum = \"{checksum}\"\n"));
        assert!(is_locked || name.starts_with("atelier-"), "{component}");
    }
    let needs = bill["dependencies"].as_array().unwrap();
    let of_program = needs.iter().find(|needs| needs["ref"] == program["bom-ref"]).unwrap()["dependsOn"].as_array().unwrap();
    assert!(of_program.iter().any(|needed| word(needed).starts_with("pkg:cargo/axum@")), "{of_program:?}");
    assert_eq!(said(&script(root, "sbom.py", &["cpu"])).1, text, "the same sources give the same bytes");
    let (is_made, _, error) = said(&script(root, "sbom.py", &["gpu"]));
    assert!(!is_made && error.contains("usage: sbom.py cpu|cuda"), "{error}");
}

#[test]
fn an_image_has_a_name_that_registries_take() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let name = |arguments: &[&str]| said(&script(root, "image.sh", arguments)).1;
    assert_eq!(name(&["Ada-Lovelace/Atelier", "v1.2.0", "-cpu"]), "ghcr.io/ada-lovelace/atelier:1.2.0-cpu\n");
    assert_eq!(name(&["ada/atelier", "v1.2.0", ""]), "ghcr.io/ada/atelier:1.2.0\n");
}

/// The workflow's steps call scripts that are there, with the Rust and the CUDA of the image.
#[test]
fn the_workflow_calls_what_is_there() {
    let workflow = file(".github/workflows/release.yml");
    let scripts: BTreeSet<String> = workflow
        .split_whitespace()
        .filter(|word| word.starts_with("deploy/release/") && word.len() > "deploy/release/".len())
        .map(str::to_owned)
        .collect();
    assert_eq!(scripts, BTreeSet::from(["archive.sh", "notes.sh", "sbom.py"].map(|name| format!("deploy/release/{name}"))));
    assert!(workflow.contains("$(deploy/release/image.sh \"$GITHUB_REPOSITORY\" \"$GITHUB_REF_NAME\" "));
    let actions: Vec<&str> = workflow.lines().filter_map(|line| line.split_once("uses: ")).map(|(_, action)| action).collect();
    assert!(actions.len() > 8 && actions.iter().all(|action| is_pinned(action)), "{actions:?}");
    let dockerfile = file("Dockerfile");
    let argument = |name: &str| dockerfile.lines().find_map(|line| line.strip_prefix(&format!("ARG {name}="))).unwrap();
    let rust = argument("RUST");
    let cuda = argument("CUDA");
    assert!(workflow.contains(&format!("rust:{rust}-bookworm")) && workflow.contains(&format!("--default-toolchain {rust}\n")));
    assert_eq!(workflow.matches(&format!("nvidia/cuda:{cuda}-cudnn-devel-ubuntu24.04")).count(), 3);
}

/// `owner/action@COMMIT # vX.Y.Z`.
fn is_pinned(action: &str) -> bool {
    let commit = action.split_once('@').map_or("", |(_, commit)| commit.split(' ').next().unwrap_or_default());
    commit.len() == 40 && commit.bytes().all(|digit| digit.is_ascii_hexdigit()) && action.contains(" # v")
}
