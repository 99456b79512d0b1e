//! A build of the program and a build of its tests share every dependency.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// The features that each crate is built with, by its name and version: a set of lists, since what runs in the compiler is built apart.
fn features(edges: &str) -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--workspace", "--target", "x86_64-unknown-linux-gnu", "--edges", edges])
        .args(["--prefix", "none", "--format", "{p}|{f}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut features: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some((name, of_it)) = line.split_once('|') {
            features.entry(name.to_owned()).or_default().insert(of_it.trim_end_matches(" (*)").to_owned());
        }
    }
    features
}

/// Where the tests' own dependencies ask more of a crate than the program does, it is compiled twice, with all that stands on it: ten CPU minutes
/// for `bytes` alone. Then the program asks for the same (see `serde_with` in Cargo.toml).
#[test]
fn what_the_program_is_linked_with_is_what_its_tests_are() {
    let program = features("normal,build");
    let tests = features("normal,build,dev");
    assert!(program.len() > 200, "only {} crates", program.len());
    let twice: Vec<_> = program.iter().filter(|(name, of_it)| !of_it.is_subset(&tests[*name])).collect();
    assert!(twice.is_empty(), "with fewer features than their tests ask for: {twice:?}");
}
