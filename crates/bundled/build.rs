//! Writes the list of the bundled models' files: path, bytes, and one hash of all of them.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// With a manifest each.
const MODELS: [&str; 2] = ["tiny-edit", "tiny-sd"];
/// Directories that manifests name.
const BESIDE: [&str; 2] = ["tiny-checker", "tiny-segmenter"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = fs::canonicalize("../../models")?;
    let mut files = Vec::new();
    for model in MODELS {
        let manifest = root.join(format!("{model}.yaml"));
        println!("cargo::rerun-if-changed={}", manifest.display());
        files.push(manifest);
    }
    for directory in MODELS.iter().chain(&BESIDE) {
        println!("cargo::rerun-if-changed={}", root.join(directory).display());
        collect(&root.join(directory), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    let mut list = String::new();
    for file in &files {
        let bytes = fs::read(file)?;
        let path = file.strip_prefix(&root)?.to_str().ok_or("a path that is no text")?;
        hash.update(path);
        hash.update([0]);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
        let file = file.to_str().ok_or("a path that is no text")?;
        writeln!(list, "    ({path:?}, include_bytes!({file:?})),")?;
    }
    let hash = base16ct::lower::encode_string(&hash.finalize());
    let source = format!(
        "const MODELS: &[&str] = &{MODELS:?};\nconst HASH: &str = {hash:?};\nstatic FILES: &[(&str, &[u8])] = &[\n{list}];\n"
    );
    #[expect(clippy::disallowed_methods, reason = "cargo says in the environment where a build script writes")]
    let out = std::env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("files.rs"), source)?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
