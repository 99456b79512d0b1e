//! Compiles our CUDA kernels to PTX where the feature `cuda` is on; what the build needs for it, candle's kernels need too.

#![expect(clippy::disallowed_methods, reason = "cargo and the toolkit tell a build script by the environment")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest GPUs that the kernels are for: `mma` of 16x8x16 and `cp.async` begin there. Drivers translate the PTX for all newer ones.
const ARCHITECTURE: &str = "compute_80";
const KERNELS: [&str; 8] = ["channels_last", "epilogue", "fp8", "gated", "gguf", "group_norm", "modulation", "norm_rope"];
/// Widths of heads that `flash.cu` is compiled for, into a file each.
const HEAD_WIDTHS: [usize; 8] = [16, 32, 40, 64, 80, 96, 128, 160];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    // Behind the feature: builds without it, which may share a target directory with one that has it, stay as they are.
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-env-changed=CUDA_PATH");
    let nvcc = nvcc();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for name in KERNELS {
        compile(&nvcc, name, &out.join(format!("{name}.ptx")), None);
    }
    for width in HEAD_WIDTHS {
        compile(&nvcc, "flash", &out.join(format!("flash_{width}.ptx")), Some(format!("-DHEAD_WIDTH={width}")));
    }
    // A driver translates PTX of its own CUDA version and of older ones: the version is compared before anything is loaded.
    println!(
        "cargo:rustc-env=ATELIER_CUDA_VERSION={}",
        version(&ran(Command::new(&nvcc).arg("--version"), "nvcc does not start"))
    );
}

fn compile(nvcc: &Path, name: &str, ptx: &Path, definition: Option<String>) {
    let source = format!("cuda/{name}.cu");
    let mut command = Command::new(nvcc);
    command.args(["-ptx", "-O3", "-std=c++17", "-arch", ARCHITECTURE, "-o"]).arg(ptx).args(definition).arg(&source);
    ran(&mut command, &format!("{source} could not be compiled"));
}

/// As candle's build finds it: by `NVCC`, which may name a wrapper, then in the toolkit's home, then on the PATH.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let in_home = homes.map(|home| Path::new(&home).join("bin/nvcc")).find(|nvcc| nvcc.exists());
    in_home.unwrap_or_else(|| "nvcc".into())
}

/// `13.0` out of `Cuda compilation tools, release 13.0, V13.0.88`.
fn version(text: &str) -> &str {
    let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    release.unwrap_or_else(|| panic!("nvcc --version names no release: {text}"))
}

fn ran(command: &mut Command, what_if_not: &str) -> String {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{what_if_not}: {command:?}: {error}. Install the CUDA toolkit, and set CUDA_HOME or put nvcc on the PATH")
    });
    assert!(output.status.success(), "{what_if_not}: {command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
