//! Gives the code the commit that it was built from, as `ATELIER_GIT_COMMIT`.
//!
//! A release is built again after a commit, because it has to name that commit. A development build never is: cargo compiles a
//! whole package again when its build script runs, and its working tree rarely equals a commit. It says `development`.

use std::env;
use std::path::Path;
use std::process::Command;

/// Given by a build without a repository, such as an image's build stage. Counts before all else.
const VARIABLE: &str = "ATELIER_GIT_COMMIT";

#[expect(
    clippy::disallowed_methods,
    reason = "config reads the environment of the product; cargo gives a build script its input there"
)]
fn main() {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-changed=build.rs");
    let given = env::var(VARIABLE).ok().filter(|commit| !commit.trim().is_empty());
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match given {
        Some(commit) => commit.trim().to_owned(),
        None if is_release => checked_out().unwrap_or_else(|| "unknown".to_owned()),
        None => "development".to_owned(),
    };
    println!("cargo:rustc-env={VARIABLE}={commit}");
}

/// The commit of this repository, and to cargo the files that change with it. None without git, and where the sources only lie
/// inside of another repository.
fn checked_out() -> Option<String> {
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    // A branch is a file of its own, or a line of packed-refs. Cargo runs this each time if a file that it watches is missing.
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let file = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    // The branch's own file appears again at its first commit after packing; the reflog grows with each.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo:rerun-if-changed={log}");
    }
    Some(commit)
}

/// What git answers; none where it fails or is not there.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
