//! What the image's stages run, run here without the network: the CPU image's files around this build, the choice of CUDA libraries.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::file;

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
    assert!(image.path().join("srv/models/tiny-sd/unet").is_dir() && image.path().join("srv/models/sd15.yaml").is_file());
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
