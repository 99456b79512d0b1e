//! The licence of this project and the licence texts of what is linked into it are there.

use std::process::Command;

use super::file;

/// Name and version of every crate that a release without features is linked with, this package's own included.
pub(super) fn linked() -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal", "--target", "x86_64-unknown-linux-gnu"])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A line is `name v1.2.3`, and perhaps where it lies or what kind it is.
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| format!("{name} {}", rest.split(' ').next().unwrap_or(rest)))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// `.ci/run` compares the whole file with what `.ci/licences.py` prints; this needs nothing but cargo.
#[test]
fn every_linked_crate_has_a_licence_text() {
    let text = file("THIRD-PARTY-LICENSES");
    // Titles are wrapped; a name in one ends with a comma or with the line under it.
    let titles = text.replace('\n', " ");
    let linked = linked();
    let missing: Vec<&String> =
        linked.iter().filter(|name| [",", " "].iter().all(|end| !titles.contains(&format!(" {name}{end}")))).collect();
    assert!(linked.len() > 200, "only {} crates", linked.len());
    assert!(missing.is_empty(), "run `just licences`, these have no text: {missing:?}");
}

#[test]
fn the_licence_is_the_one_that_the_manifest_declares() {
    assert_eq!(env!("CARGO_PKG_LICENSE"), "Apache-2.0");
    let text = file("LICENSE");
    assert!(text.contains("Apache License") && text.contains("Version 2.0, January 2004"));
    assert!(text.contains("TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"));
    assert!(text.lines().count() > 190, "not the whole text");
}
