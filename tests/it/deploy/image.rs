//! What the image's stages run, run here without the network: the CPU image's files around this build, the choice of CUDA libraries.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::geteuid;
use tempfile::TempDir;

use super::file;

/// The user of distroless images with the tag `nonroot`.
const NONROOT: u32 = 65_532;

fn script(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("deploy/image").join(name));
    command.args(arguments).envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn the_cpu_image_has_what_it_starts_with() {
    let image = tempfile::tempdir().unwrap();
    let to = image.path().to_str().unwrap();
    let built = script("build.sh", &["cpu", to], &[("ATELIER_BINARY", env!("CARGO_BIN_EXE_atelier"))]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // Every path that the final stage takes is there.
    let dockerfile = file("Dockerfile");
    let taken: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY --from=build-cpu /image/")).collect();
    assert!(taken.len() >= 2, "{taken:?}");
    for line in taken {
        let path = image.path().join(line.split(' ').next().unwrap());
        assert!(path.exists(), "{} is missing", path.display());
    }
    // As in the image: /srv is where it starts, with nothing in the environment. Without a Runtime API it says what it needs.
    let started =
        Command::new(image.path().join("bin/atelier")).env_clear().current_dir(image.path().join("srv")).output().unwrap();
    let said = String::from_utf8_lossy(&started.stderr);
    assert!(!started.status.success() && said.contains("AWS_LAMBDA_RUNTIME_API"), "{said}");
    for file in ["tiny-sd/unet", "tiny-edit", "sd15.yaml"] {
        assert!(image.path().join("srv/models").join(file).exists(), "{file}");
    }
}

/// The environment that the final stage sets, one `NAME=value` each.
fn environment_of_stage(dockerfile: &str, stage: &str) -> Vec<String> {
    let stages = dockerfile.split("\nFROM ").find(|text| text.lines().next().is_some_and(|line| line.ends_with(stage)));
    let lines = stages.expect("the stage").lines().filter_map(|line| line.strip_prefix("ENV "));
    lines.flat_map(|line| line.split(' ')).map(str::to_owned).collect()
}

/// A directory with nothing in it but what the CPU image has: the binary and its libraries, no shell, no certificate authorities.
fn root_of_image() -> TempDir {
    let image = tempfile::tempdir().unwrap();
    let at = |path: &str| image.path().join(path.trim_start_matches('/'));
    let built =
        script("build.sh", &["cpu", at("image").to_str().unwrap()], &[("ATELIER_BINARY", env!("CARGO_BIN_EXE_atelier"))]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for directory in ["usr/local/bin", "var/lib", "proc", "dev", "tmp"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    for (from, to) in [("image/bin/atelier", "usr/local/bin/atelier"), ("image/srv", "srv"), ("image/state", "var/lib/atelier")]
    {
        fs::rename(at(from), at(to)).unwrap();
    }
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(at("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    chown(at("var/lib/atelier"), Some(NONROOT), Some(NONROOT)).unwrap();
    let libraries = Command::new("ldd").arg(env!("CARGO_BIN_EXE_atelier")).output().unwrap();
    let libraries = String::from_utf8(libraries.stdout).unwrap();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        fs::create_dir_all(at(library).parent().unwrap()).unwrap();
        fs::copy(library, at(library)).unwrap();
    }
    image
}

/// The image's entry point as its unprivileged user, with a `/proc` and a `/dev/null` of its own as containers have them. The shell stays in front of it: whoever
/// changes its user is not killed with its parent any more (prctl(2), `PR_SET_PDEATHSIG`), and the shell takes all of its namespace along.
fn start(root: &Path, arguments: &[&str], environment: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    let script = "mount -t proc proc \"$1/proc\" && touch \"$1/dev/null\" && mount --bind /dev/null \"$1/dev/null\" && cd \"$1\" && \
        root=$1 && shift && chroot --userspec=65532:65532 \"$root\" /usr/local/bin/atelier \"$@\"; exit $?";
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"])
        .arg(root)
        .args(arguments)
        .env_clear();
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    for variable in environment {
        let (name, value) = variable.split_once('=').unwrap();
        command.env(name, value);
    }
    command
}

/// Whether a process has this directory as its root.
fn is_lived_in(root: &Path) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.map(|process| process.path().join("root")).any(|own| fs::read_link(own).is_ok_and(|own| own == root))
}

/// With nothing set and nobody to trust: the spool is a directory that its user may write, and HTTPS has authorities all the same.
#[tokio::test]
async fn the_image_starts_with_nothing_set() {
    if !geteuid().is_root() {
        return crate::servers::left_out("the image's root", "only root may change into it");
    }
    let root = root_of_image();
    let dockerfile = file("Dockerfile");
    let mut environment = environment_of_stage(&dockerfile, "AS cpu");
    assert!(environment.iter().any(|variable| variable.starts_with("ATELIER__SOURCES__SPOOL__DIRECTORY=/var/lib/atelier/")));
    environment.extend(["ATELIER__SERVER__PORT=0", "ATELIER__SERVER__ADDRESS=127.0.0.1"].map(str::to_owned));
    environment
        .extend(["AWS_STORAGE_BUCKET_NAME=images", "ATELIER__STORE__ENDPOINT_URL=http://127.0.0.1:9"].map(str::to_owned));
    environment.extend(["AWS_ACCESS_KEY_ID=x", "AWS_SECRET_ACCESS_KEY=x"].map(str::to_owned));
    let environment: Vec<&str> = environment.iter().map(String::as_str).collect();
    let log = root.path().join("log");
    let mut host = start(root.path(), &["host"], &environment).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    let listens = || fs::read_to_string(&log).unwrap().contains("listening for HTTP");
    let listening = crate::host::eventually("the host listens", || listens() || host.try_wait().unwrap().is_some()).await;
    let said = fs::read_to_string(&log).unwrap();
    let _ = host.kill();
    let _ = host.wait();
    crate::host::eventually("no process is left in the image", || !is_lived_in(root.path())).await.unwrap();
    listening.unwrap();
    assert!(listens(), "{said}");
    assert!(said.contains("this system has no certificate authorities"), "{said}");
    assert!(root.path().join("var/lib/atelier/spool/waiting").is_dir(), "{said}");
    let ended = start(root.path(), &["demo", "--out", "/tmp/out"], &["HOME=/tmp"]).output().unwrap();
    assert!(ended.status.success(), "{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(root.path().join("tmp/out").read_dir().unwrap().count() > 4);
}

#[test]
fn a_flavour_that_is_not_there_is_an_error() {
    let ended = script("build.sh", &["rocm", "/nonexistent"], &[]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("cpu or cuda"));
}

#[test]
fn the_cuda_libraries_are_taken_and_no_others() {
    let image = tempfile::tempdir().unwrap();
    let toolkit = tempfile::tempdir().unwrap();
    fs::create_dir_all(image.path().join("bin")).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_atelier"), image.path().join("bin/atelier")).unwrap();
    let wanted =
        ["libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9", "libcudnn_ops.so.9", "libcurand.so.10", "libnvrtc.so.13"];
    let directory = toolkit.path().join("lib");
    fs::create_dir(&directory).unwrap();
    for name in wanted.iter().chain(&["libcuda.so.1", "libnvidia-ml.so.1", "libcufft.so.12", "libcublas_static.a"]) {
        fs::write(directory.join(name), name).unwrap();
    }
    let search = format!("{}:/nonexistent", directory.display());
    let ended = script("libraries.sh", &[image.path().to_str().unwrap()], &[("CUDA_LIBRARIES", &search)]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let mut found: Vec<String> = fs::read_dir(image.path().join("lib"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    // The driver's own come from the machine.
    assert_eq!(found, wanted);
}

/// Cargo does not read a manifest whose tests and benches are not there, and the sources include files of docs/ and events/.
#[test]
fn the_build_gets_every_file_that_it_reads() {
    let ignored = file(".dockerignore");
    assert_eq!(ignored.lines().collect::<Vec<_>>(), [".git", "target", "out", "spool", "rust-toolchain.toml"]);
}
