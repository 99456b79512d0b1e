//! The commands of people and of CI: the justfile, the workflow, and the Rust that both use.

use std::collections::BTreeSet;

use serde_json::Value;

use super::file;

/// The recipes of the justfile: lines such as `test name:`, and those with a comment before them alone.
fn recipes() -> BTreeSet<String> {
    let text = file("justfile");
    let heads = text.lines().filter(|line| !line.starts_with([' ', '#']) && line.ends_with(':'));
    heads.map(|line| line.split([' ', ':']).next().unwrap().to_owned()).filter(|name| name != "default").collect()
}

#[test]
fn contributors_read_of_every_recipe() {
    let page = file("CONTRIBUTING.md");
    let explained = page.lines().filter_map(|line| line.strip_prefix("| `just "));
    let explained: BTreeSet<String> = explained.map(|rest| rest.split([' ', '`']).next().unwrap().to_owned()).collect();
    assert_eq!(explained, recipes());
}

/// A recipe calls a script that is there and may be run.
#[test]
fn what_recipes_call_exists() {
    use std::os::unix::fs::PermissionsExt as _;
    let text = file("justfile");
    let words = text.lines().filter(|line| line.starts_with("    ")).flat_map(str::split_whitespace);
    let scripts: Vec<&str> = words.filter(|word| [".ci/", "tests/"].iter().any(|start| word.starts_with(start))).collect();
    assert!(scripts.len() >= 3, "{scripts:?}");
    for script in scripts {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
        let mode = std::fs::metadata(&path).unwrap_or_else(|error| panic!("{script}: {error}")).permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} may not be run");
    }
}

#[test]
fn the_workflow_runs_what_a_change_must_pass() {
    let workflow: Value = serde_saphyr::from_str(&file(".github/workflows/ci.yml")).unwrap();
    let steps = workflow["jobs"]["run"]["steps"].as_array().unwrap();
    assert!(steps.iter().any(|step| step["run"] == ".ci/run"), "{steps:?}");
    assert_eq!(workflow["permissions"]["contents"], "read");
}

/// The Rust that builds here is not older than the oldest that works.
#[test]
fn the_toolchain_is_one_that_works() {
    let text = file("rust-toolchain.toml");
    let channel = text.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"')).expect("a channel");
    let number = |version: &str| version.split('.').map(|part| part.parse::<u32>().unwrap()).collect::<Vec<_>>();
    assert!(number(channel) >= number(env!("CARGO_PKG_RUST_VERSION")), "{channel}");
}
