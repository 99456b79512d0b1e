//! The documents keep up with the code: the generated ones, the changelog, and commands that say who runs them.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use atelier::config::BUILT_IN;
use serde_json::{Value, json};

use super::{file, pages};
use crate::servers::environment;

/// `ATELIER_WRITE_DOCS` set: the file is written anew instead of being compared.
fn is(name: &str, text: &str) {
    if environment("ATELIER_WRITE_DOCS").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), text).unwrap();
        return;
    }
    assert_eq!(file(name), text, "{name} is old: run this test once with ATELIER_WRITE_DOCS=1");
}

/// A line of config.yaml: its indentation, key, value and comment.
fn parts(line: &str) -> Option<(usize, &str, &str, &str)> {
    let (key, rest) = line.split_once(':').filter(|(key, _)| !key.trim_start().starts_with('#'))?;
    let (value, comment) = rest.split_once(" #").unwrap_or((rest, ""));
    Some(((key.len() - key.trim_start().len()) / 2, key.trim(), value.trim(), comment.trim()))
}

/// The file's keys as a table: the whole path, the default, the variable that overrides it, what it is.
fn reference() -> String {
    let mut text = String::from(
        "# Configuration reference\n\n<!-- Written by tests/it/deploy/docs.rs from config.yaml: ATELIER_WRITE_DOCS=1 cargo test --test it \
         deploy::docs -->\n\nA key can stand in a file of yours: `--config FILE`, `ATELIER_CONFIG`, or `config.yaml` in the working \
         directory.\nIt can also stand in the environment as `ATELIER__SECTION__KEY`. `${NAME}` in a default is an environment \
         variable that has always counted.\nAn unknown key is an error. A few finer keys (timeouts, retry backoff) stand only in \
         the `Settings` types of `src/store`, `src/notify` and `src/outbound`.\n\n| key | default | meaning |\n|---|---|---|\n",
    );
    let mut path: Vec<&str> = Vec::new();
    let mut lines = BUILT_IN.lines().filter_map(parts).peekable();
    while let Some((depth, key, value, comment)) = lines.next() {
        path.truncate(depth);
        path.push(key);
        let is_section = lines.peek().is_some_and(|&(below, ..)| below > depth);
        if is_section && comment.is_empty() {
            continue;
        }
        let default = if value.is_empty() { String::new() } else { format!("`{}`", value.replace('|', "\\|")) };
        writeln!(text, "| `{}` | {default} | {} |", path.join("."), comment.replace('|', "\\|")).unwrap();
    }
    text
}

#[test]
fn the_configuration_reference_is_that_of_the_code() {
    let text = reference();
    assert!(text.contains("| `sources.sqs.visibility_seconds` | `120` |") && text.lines().count() > 90, "{text}");
    is("docs/configuration.md", &text);
}

/// The schemas of a job's body, out of the document that the reader is tested against.
#[test]
fn the_job_schema_is_that_of_the_api() {
    let document: Value = serde_json::from_str(&file("docs/openapi.json")).unwrap();
    let moved = document["components"]["schemas"].to_string().replace("#/components/schemas/", "#/$defs/");
    let all: serde_json::Map<String, Value> = serde_json::from_str(&moved).unwrap();
    let mut used = ["Generate", "TryOn", "Edit"].map(str::to_owned).to_vec();
    let mut index = 0;
    while index < used.len() {
        let text = all[&used[index]].to_string();
        for name in text.split("#/$defs/").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()) {
            if !used.contains(&name) {
                used.push(name);
            }
        }
        index += 1;
    }
    let definitions: serde_json::Map<String, Value> = used.iter().map(|name| (name.clone(), all[name].clone())).collect();
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job of atelier, as it stands in a queue",
        // `anyOf` would answer a wrong field with a word for word copy of the job under both.
        "type": "object",
        "if": { "properties": { "task": { "const": "tryon" } }, "required": ["task"] },
        "then": { "$ref": "#/$defs/TryOn" },
        "else": {
            "if": { "properties": { "task": { "const": "edit" } }, "required": ["task"] },
            "then": { "$ref": "#/$defs/Edit" },
            "else": { "$ref": "#/$defs/Generate" },
        },
        "$defs": definitions,
    });
    is("docs/job.schema.json", &format!("{}\n", serde_json::to_string_pretty(&schema).unwrap()));
}

/// What the binary prints of itself is what docs/ holds.
#[test]
fn completions_and_manual_are_those_of_the_command_line() {
    let printed = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_atelier")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    is("docs/atelier.1", &printed(&["manual"]));
    for (shell, name) in [("bash", "atelier.bash"), ("zsh", "_atelier"), ("fish", "atelier.fish")] {
        is(&format!("docs/completions/{name}"), &printed(&["completions", shell]));
    }
}

#[test]
fn the_changelog_has_this_version() {
    let heading = format!("\n## {} ", env!("CARGO_PKG_VERSION"));
    assert!(file("CHANGELOG.md").contains(&heading), "CHANGELOG.md has no `{}`", heading.trim());
    // The version stands in Cargo.toml; what names an image names that one.
    let chart = file("deploy/helm/atelier/Chart.yaml");
    assert!(chart.contains(&format!("\nappVersion: \"{}\"\n", env!("CARGO_PKG_VERSION"))), "Chart.yaml has another version");
    let compose = file("deploy/compose.yaml");
    assert!(compose.contains(&format!("TAG:-{}-cpu}}", env!("CARGO_PKG_VERSION"))), "compose.yaml names another version");
    for name in ["deploy/k8s/deployment.yaml", "Dockerfile"] {
        assert!(file(name).contains(&format!("atelier:{}", env!("CARGO_PKG_VERSION"))), "{name} names another version");
    }
    assert!(
        file("Dockerfile").contains(&format!("ARG RUST={}\n", env!("CARGO_PKG_RUST_VERSION"))),
        "another Rust than Cargo.toml's"
    );
}

/// Each message of troubleshooting.md is one that the sources can say.
#[test]
fn messages_that_are_explained_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = ["src", "crates"].map(|directory| sources(&root.join(directory))).concat();
    let text = file("docs/troubleshooting.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() >= 15, "only {} rows", rows.len());
    for row in rows {
        for message in row.split(" | ").next().unwrap().split('`').skip(1).step_by(2) {
            assert!(sources.contains(message), "nothing says `{message}`");
        }
    }
}

fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        text += &if path.is_dir() { sources(&path) } else { fs::read_to_string(&path).unwrap() };
    }
    text
}

/// Before each block of commands of a page stands who runs it: a test by its name, or no one here, and why.
#[test]
fn every_block_of_commands_says_who_runs_it() {
    let mut blocks = 0;
    let mut wrong = Vec::new();
    for page in pages::all() {
        for (line, mark) in marks(&file(&page)) {
            blocks += 1;
            wrong.extend(complaint(mark).map(|complaint| format!("{page}:{line}: {complaint}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(blocks >= 16, "only {blocks} blocks");
}

/// What stands before each block of shell commands, with the block's line.
fn marks(text: &str) -> Vec<(usize, &str)> {
    const SHELL: [&str; 4] = ["```sh", "```bash", "```shell", "```console"];
    let lines: Vec<&str> = text.lines().collect();
    let blocks = lines.iter().enumerate().filter(|(_, line)| SHELL.contains(&line.trim()));
    blocks.map(|(index, _)| (index + 1, index.checked_sub(1).map_or("", |before| lines[before].trim()))).collect()
}

/// What is wrong with a mark, if anything is.
fn complaint(mark: &str) -> Option<String> {
    let inside = mark.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")).unwrap_or_default();
    if inside.strip_prefix("not run: ").is_some_and(|why| !why.is_empty()) {
        return None;
    }
    let Some((name, test)) = inside.strip_prefix("run by ").and_then(|rest| rest.split_once(": ")) else {
        return Some(format!("needs `<!-- run by FILE: TEST -->` or `<!-- not run: WHY -->` before it, has {mark:?}"));
    };
    let code = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap_or_default();
    let lines: Vec<&str> = code.lines().collect();
    let is_there = lines.windows(2).any(|pair| pair[0].contains("test]") && pair[1].contains(&format!("fn {test}()")));
    (!is_there).then(|| format!("{name} has no test {test}"))
}

#[test]
fn a_block_without_a_mark_or_with_a_wrong_one_is_found() {
    assert_eq!(marks("text\n<!-- not run: x -->\n```sh\nls\n```\n\n```bash\nls\n```\n"), [(3, "<!-- not run: x -->"), (7, "")]);
    assert!(complaint("").is_some() && complaint("<!-- not run: -->").is_some());
    assert_eq!(complaint("<!-- not run: needs a GPU -->"), None);
    assert_eq!(complaint("<!-- run by tests/it/deploy/docs.rs: the_changelog_has_this_version -->"), None);
    assert!(complaint("<!-- run by tests/it/deploy/docs.rs: the_changelog -->").unwrap().contains("has no test"));
    // Not a test, though a function.
    assert!(complaint("<!-- run by tests/it/deploy/docs.rs: reference -->").is_some());
}
