//! The Rust that Cargo.toml asks for is the one that its dependencies need, and no newer.

use std::process::Command;

use serde_json::Value;

/// 1.94 as (1, 94, 0).
fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split('.').map(|part| part.parse().unwrap());
    let mut part = || parts.next().unwrap_or(0);
    (part(), part(), part())
}

#[test]
fn the_oldest_rust_is_that_of_the_newest_dependency() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let used: Vec<&Value> = metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let packages = metadata["packages"].as_array().unwrap().iter().filter(|package| used.contains(&&package["id"]));
    let others = packages.filter(|package| !package["source"].is_null());
    let needs = others.filter_map(|package| Some((version(package["rust_version"].as_str()?), package["name"].to_string())));
    let (newest, name) = needs.max().expect("some say what they need");
    assert_eq!(version(env!("CARGO_PKG_RUST_VERSION")), newest, "Cargo.toml's rust-version, and that of {name}");
}
