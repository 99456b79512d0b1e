//! The house rules that the compiler does not know: who may import whom, and how long a file and a function may be.

mod graph;
mod imports;
mod locals;
mod may_import;
mod source;
mod words;

use std::fs;
use std::path::{Path, PathBuf};

use self::may_import::MAY_IMPORT;
use self::source::Source;

/// Crates that a module must not name, and the files that may all the same. A `*` at the end stands for any ending.
const MUST_NOT_USE: &[(&str, &[&str], &[&str])] =
    &[("engine", &["tokio", "serde_json", "aws_*", "reqwest", "lambda_*"], KNOWS_JSON)];
/// The files of the engine that read JSON.
const KNOWS_JSON: &[&str] = &[
    "crates/engine/src/adapter_config.rs",
    "crates/engine/src/json_config.rs",
    "crates/engine/src/qwen/checkpoint.rs",
    "crates/engine/src/sd/checkpoint.rs",
    "crates/engine/src/tensor_table.rs",
];

const MAX_FILE_LINES: usize = 400;
const MAX_MAIN_LINES: usize = 80;
const MAX_FUNCTION_LINES: usize = 60;
/// The only readers of the environment, and the only places where a build feature shows.
const READS_ENVIRONMENT: &[&str] = &["src/config.rs", "src/config/", "crates/bundled/src/lib.rs"];
/// What a GPU is asked for, and the way of weights to it.
const KNOWS_FEATURES: &[&str] = &["crates/engine/src/device.rs", "crates/engine/src/loader.rs", "crates/kernels/src/lib.rs"];

#[test]
fn the_sources_keep_the_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["src", "tests", "crates"] {
        rust_files(&root.join(directory), &mut files);
    }
    files.sort();
    let mut broken = Vec::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap();
        broken.extend(check(name, &fs::read_to_string(file).unwrap()));
    }
    assert!(files.len() > 20, "found only {files:?}");
    assert!(broken.is_empty(), "{} house rules broken:\n{}", broken.len(), broken.join("\n"));
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All Rust files of the repository, sorted: name and text of each.
fn all_rust_files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    for directory in ["src", "crates", "tests", "bench", "fuzz"] {
        rust_files(&root.join(directory), &mut paths);
    }
    paths.sort();
    assert!(paths.len() > 20, "found only {paths:?}");
    let files = paths.iter().map(|path| {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        (name.to_owned(), fs::read_to_string(path).unwrap())
    });
    files.collect()
}

/// Every house rule that `text`, the file `name` of the repository, breaks.
fn check(name: &str, text: &str) -> Vec<String> {
    let source = match Source::read(name, text) {
        Ok(source) => source,
        Err(error) => return vec![format!("{name}: is not Rust: {error}")],
    };
    let mut broken = Vec::new();
    check_shape(name, text, &source, &mut broken);
    if let Some(module) = module(name) {
        check_imports(name, module, &source, &mut broken);
        check_seams(name, &source, &mut broken);
        check_calls(name, text, &mut broken);
    }
    broken
}

/// The module that a file of src/ belongs to, or its crate in crates/; none of a test or a bench.
fn module(name: &str) -> Option<&str> {
    if let Some((module, inside)) = name.strip_prefix("crates/").and_then(|inside| inside.split_once('/')) {
        return inside.starts_with("src/").then_some(module);
    }
    let inside = name.strip_prefix("src/").filter(|inside| *inside != "lib.rs")?;
    inside.split(['/', '.']).next()
}

fn check_shape(name: &str, text: &str, source: &Source, broken: &mut Vec<String>) {
    let lines = text.lines().count();
    let longest = if name == "src/main.rs" { MAX_MAIN_LINES } else { MAX_FILE_LINES };
    if lines > longest {
        broken.push(format!("{name}: has {lines} lines, at most {longest} are allowed: split it by concept"));
    }
    if !text.starts_with("//! ") {
        broken.push(format!("{name}:1: must open with one `//!` sentence that says what the file is for"));
    }
    for function in source.functions.iter().filter(|function| function.lines > MAX_FUNCTION_LINES) {
        let line = function.line;
        let lines = function.lines;
        broken.push(format!("{name}:{line}: a function of {lines} lines, at most {MAX_FUNCTION_LINES} are allowed"));
    }
    for (line, what) in &source.unfinished {
        broken.push(format!("{name}:{line}: `{what}` is unfinished work: finish it, or open an issue"));
    }
}

fn check_imports(name: &str, module: &str, source: &Source, broken: &mut Vec<String>) {
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(row, _)| *row == module) else {
        broken.push(format!("{name}: the module `{module}` has no row in MAY_IMPORT (tests/it/architecture/may_import.rs)"));
        return;
    };
    for (line, path) in &source.own_paths {
        // How a value is shown in a message is everyone's.
        let inside = path.first().is_some_and(|first| first == module || first == "shown");
        let path = path.join("::");
        let may = allowed.iter().any(|row| *row == "*" || path == *row || path.starts_with(&format!("{row}::")));
        if !(inside || may) {
            let may = if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") };
            broken.push(format!("{name}:{line}: `{module}` must not import `{path}`; it may import {may}"));
        }
    }
    for (_, banned, excepted) in MUST_NOT_USE.iter().filter(|(row, ..)| *row == module) {
        if excepted.contains(&name) {
            continue;
        }
        for (line, path) in &source.foreign_paths {
            let is_banned = banned.iter().any(|name| match name.strip_suffix('*') {
                Some(start) => path[0].starts_with(start),
                None => path[0] == **name,
            });
            if is_banned {
                broken.push(format!("{name}:{line}: `{module}` must not use the crate `{}`", path[0]));
            }
        }
    }
}

/// `Instant::now() + pause` panics on a number that someone else chose; a client of its own knows no bundled authorities.
fn check_calls(name: &str, text: &str, broken: &mut Vec<String>) {
    const SUMS: [&str; 3] = ["Instant::now() +", "SystemTime::now() +", "UNIX_EPOCH +"];
    let tests = text.find("#[cfg(test)]").unwrap_or(text.len());
    for (index, line) in text[..tests].lines().enumerate() {
        if ["reqwest::Client::builder()", "Client::new()", "reqwest::get("].iter().any(|call| line.contains(call))
            && name.starts_with("src/")
            && name != "src/authorities.rs"
        {
            broken.push(format!(
                "{name}:{}: a client that fails where the system trusts nobody: use `authorities::client`",
                index + 1
            ));
        }
        if SUMS.iter().any(|sum| line.contains(sum)) {
            broken.push(format!("{name}:{}: adds to a moment, which can overflow: use `clock::later`", index + 1));
        }
    }
}

fn check_seams(name: &str, source: &Source, broken: &mut Vec<String>) {
    let excepted = |places: &[&str]| places.iter().any(|place| name.starts_with(place));
    for (line, path) in &source.foreign_paths {
        let reads = matches!(path.as_slice(), [.., env, read] if env == "env" && read.starts_with("var"));
        if reads && !excepted(READS_ENVIRONMENT) {
            broken.push(format!("{name}:{line}: reads the environment, which only config does"));
        }
    }
    for line in source.features.iter().filter(|_| !excepted(KNOWS_FEATURES)) {
        broken.push(format!("{name}:{line}: `cfg(feature = ...)` belongs in {}", KNOWS_FEATURES.join(", ")));
    }
}

/// What the checker says about one file with the given content, after a proper first line.
fn complaints(name: &str, code: &str) -> String {
    check(name, &format!("//! A sample.\n{code}\n")).join("\n")
}

#[test]
fn imports_outside_the_table_are_found() {
    for (name, code, expected) in [
        (
            "src/job/task.rs",
            "use atelier_engine::Engine;",
            "`job` must not import `engine::Engine`; it may import nothing of ours",
        ),
        (
            "crates/engine/src/sd/unet.rs",
            "use atelier::job::outcome::JobError;",
            "`engine` must not import `job::outcome::JobError`",
        ),
        ("crates/engine/src/lib.rs", "use atelier::{job::task::Generate, store};", "`engine` must not import `store`"),
        ("src/host/mod.rs", "use atelier_engine::thread::BatchSlot;", "`host` must not import `engine::thread::BatchSlot`"),
        ("crates/kernels/src/lib.rs", "use atelier_engine::Engine;", "`kernels` must not import `engine::Engine`"),
        ("src/workflow/mod.rs", "fn f() -> crate::handler::Reply { todo() }", "`workflow` must not import `handler::Reply`"),
        ("src/events/sqs.rs", "fn f() { let x = vec![crate::store::get()]; }", "`events` must not import `store::get`"),
        ("src/events/sqs.rs", "use super::super::store::Store;", "`events` must not import `store::Store`"),
        ("src/store/mod.rs", "mod inner { use super::super::notify; }", "`store` must not import `notify`"),
        ("src/job/mod.rs", "use atelier::config::Config;", "`job` must not import `config::Config`"),
        ("src/gallery.rs", "", "the module `gallery` has no row in MAY_IMPORT"),
        ("crates/engine/src/thread.rs", "use tokio::sync::mpsc;", "`engine` must not use the crate `tokio`"),
        ("crates/engine/src/thread.rs", "fn f() { ::aws_sdk_s3::go() }", "`engine` must not use the crate `aws_sdk_s3`"),
        ("crates/engine/src/thread.rs", "fn f() { serde_json::json!(1); }", "`engine` must not use the crate `serde_json`"),
    ] {
        let found = complaints(name, code);
        assert!(found.contains(expected), "{name}: {code}\nfound: {found}");
    }
}

#[test]
fn what_the_table_allows_passes() {
    for (name, code) in [
        ("crates/engine/src/sd/unet.rs", "use super::super::device;\npub(crate) fn f() {}"),
        ("src/workflow/request.rs", "use atelier_engine::GenerateRequest;\nuse crate::job::task::Generate;"),
        ("crates/engine/src/sd/checkpoint.rs", "use serde_json::Value;"),
        ("crates/engine/src/device.rs", "#[cfg(feature = \"cuda\")]\nfn f() {}"),
        ("src/config/mod.rs", "fn f() { std::env::vars_os(); }"),
        ("src/demo/mod.rs", "use crate::{config::Config, handler};"),
        ("src/store/mod.rs", "mod inner { use super::cache; }\nuse self::cache::Cache;"),
        ("tests/it/main.rs", "fn f() { std::env::var(\"ATELIER_TEST_VENV\"); }"),
    ] {
        assert_eq!(complaints(name, code), "", "{name}: {code}");
    }
}

#[test]
fn other_broken_rules_are_found() {
    let long = format!("fn f() {{\n{}}}", "    g();\n".repeat(61));
    let nested = format!("impl A {{ fn f() {{\n{}}} }}", "    g();\n".repeat(61));
    for (name, code, expected) in [
        ("src/job/mod.rs", "fn f() { std::env::var(\"HOME\"); }", ":2: reads the environment"),
        ("src/job/mod.rs", "use std::env;\nfn f() { env::vars(); }", ":3: reads the environment"),
        ("src/job/mod.rs", "use std::env::var_os;", ":2: reads the environment"),
        ("crates/engine/src/lib.rs", "#[cfg(feature = \"cuda\")]\nmod kernels {}", ":2: `cfg(feature = ...)` belongs in"),
        ("crates/engine/src/lib.rs", "fn f() -> bool { cfg!(feature = \"cuda\") }", ":2: `cfg(feature = ...)` belongs in"),
        ("src/job/mod.rs", &long, ":2: a function of 61 lines"),
        ("src/job/mod.rs", &nested, ":2: a function of 61 lines"),
        ("src/job/mod.rs", &"const A: u8 = 0;\n".repeat(400), "has 402 lines, at most 400 are allowed"),
        ("src/main.rs", &"const A: u8 = 0;\n".repeat(80), "has 82 lines, at most 80 are allowed"),
        ("src/job/mod.rs", concat!("// FIX", "ME: later"), concat!(":2: `FIX", "ME` is unfinished work")),
        ("src/job/mod.rs", concat!("/// TO", "DO\nfn f() {}"), concat!(":2: `TO", "DO` is unfinished work")),
        ("src/job/mod.rs", "fn f() {\n    unimplemented!() }", ":3: `unimplemented!` is unfinished work"),
        ("src/job/mod.rs", "fn f() { todo!() }", ":2: `todo!` is unfinished work"),
        ("tests/it/main.rs", "#[test]\n#[ignore]\nfn f() {}", ":3: `#[ignore]` is unfinished work"),
        ("src/host/mod.rs", "fn f() { Instant::now() + pause(); }", ":2: adds to a moment, which can overflow"),
        ("src/host/mod.rs", "fn f() { reqwest::Client::builder() }", ":2: a client that fails where the system trusts nobody"),
        ("src/job/mod.rs", "fn f( {", "is not Rust"),
    ] {
        let found = complaints(name, code);
        assert!(found.contains(expected), "{name}: {code}\nfound: {found}");
    }
    assert!(check("src/job/mod.rs", "\nfn f() {}").join("").contains("must open with one `//!` sentence"));
}
