//! What build.rs says of the commit: compiled by rustc alone, and run in repositories of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A repository with one commit, and the build script as a program next to it.
struct Sample {
    directory: TempDir,
    program: PathBuf,
}

impl Sample {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("script");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let compiled = Command::new("rustc").args(["--edition", "2024", "-o"]).args([&program, &source]).output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        fs::create_dir(directory.path().join("package")).unwrap();
        Self { directory, program }
    }

    fn package(&self) -> PathBuf {
        self.directory.path().join("package")
    }

    fn git(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=A", "-c", "user.email=a@example.com"]).args(arguments);
        // The settings of the person who runs this, such as commits that are signed, change nothing.
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        let output = command.current_dir(self.package()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn commit(&self) -> String {
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "x"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// What the script says in `directory`: the commit, and the files that cargo is to watch.
    fn run(&self, directory: &Path, profile: &str, given: Option<&str>) -> (String, Vec<String>) {
        let mut command = Command::new(&self.program);
        command.current_dir(directory).env("PROFILE", profile).env_remove("ATELIER_GIT_COMMIT");
        command.envs(given.map(|commit| ("ATELIER_GIT_COMMIT", commit)));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let with =
            |start: &str| said.lines().filter_map(|line| line.strip_prefix(start)).map(str::to_owned).collect::<Vec<_>>();
        let watched = with("cargo:rerun-if-changed=").into_iter().filter(|file| file != "build.rs").collect();
        (with("cargo:rustc-env=ATELIER_GIT_COMMIT=").join(","), watched)
    }
}

#[test]
fn a_release_names_its_commit_and_watches_for_the_next() {
    let sample = Sample::new();
    sample.git(&["init", "--quiet", "--initial-branch", "main"]);
    let commit = sample.commit();
    for pack in [false, true] {
        if pack {
            sample.git(&["pack-refs", "--all"]);
        }
        let (named, watched) = sample.run(&sample.package(), "release", None);
        assert_eq!(named, commit, "packed: {pack}");
        let contents =
            |files: &[String]| files.iter().map(|file| fs::read(sample.package().join(file)).unwrap()).collect::<Vec<_>>();
        let before = contents(&watched);
        assert!(!before.is_empty(), "a missing file would build everything each time");
        sample.git(&["commit", "--quiet", "--allow-empty", "--message", "y"]);
        assert_ne!(contents(&watched), before, "the next commit would not be seen; packed: {pack}");
        sample.git(&["reset", "--quiet", "--hard", &commit]);
    }
}

#[test]
fn a_development_build_watches_nothing_so_that_a_commit_builds_nothing() {
    let sample = Sample::new();
    sample.git(&["init", "--quiet"]);
    sample.commit();
    assert_eq!(sample.run(&sample.package(), "debug", None), ("development".to_owned(), Vec::new()));
}

#[test]
fn a_given_commit_counts_and_without_git_it_is_unknown() {
    let sample = Sample::new();
    let package = sample.package();
    assert_eq!(sample.run(&package, "release", Some("abc123\n")), ("abc123".to_owned(), Vec::new()));
    assert_eq!(sample.run(&package, "debug", Some("abc123")).0, "abc123");
    assert_eq!(sample.run(&package, "release", Some("")), ("unknown".to_owned(), Vec::new()));
    // Sources that lie in another project's repository are not that project's commit.
    sample.git(&["init", "--quiet"]);
    sample.commit();
    fs::create_dir(package.join("vendored")).unwrap();
    assert_eq!(sample.run(&package.join("vendored"), "release", None), ("unknown".to_owned(), Vec::new()));
}
