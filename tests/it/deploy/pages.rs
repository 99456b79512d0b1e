//! The pages for people: their links lead somewhere, the front door is short, and so are the sentences.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::file;

/// Directories with pages of our own; a page elsewhere is found by the link that leads to it.
const DIRECTORIES: &[&str] = &[
    "",
    "docs",
    "docs/internals",
    "docs/adr",
    "clients/python",
    "clients/typescript",
    "examples",
    "bench",
    "models/tiny-sd",
    "models/tiny-edit",
    "models/tiny-checker",
    "models/tiny-segmenter",
    "tests/cuda",
];
/// Lines that a reader of these pages has to pass at most.
const MAX_LINES: &[(&str, usize)] = &[("README.md", 120), ("ARCHITECTURE.md", 130)];
const MAX_WORDS: usize = 25;
/// The changelog is a list, and the benchmarks' page explains rows of tables.
const ANY_SENTENCES: &[&str] = &["CHANGELOG.md", "bench/README.md"];

/// Every page, as its path from the repository's root.
pub(super) fn all() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for directory in DIRECTORIES {
        for entry in std::fs::read_dir(root.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Without blocks of code: an empty line stands for each of their lines.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut kept = String::new();
    for line in text.lines() {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        kept += if inside || fence { "" } else { line };
        kept.push('\n');
    }
    kept
}

/// The targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).collect()
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn has_anchor(text: &str, wanted: &str) -> bool {
    prose(text).lines().filter(|line| line.starts_with('#')).any(|line| anchor(line.trim_start_matches('#')) == wanted)
}

/// What is wrong with a link on `page`, if anything is.
fn broken(page: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, wanted) = target.split_once('#').unwrap_or((target, ""));
    let place = if path.is_empty() { PathBuf::from(page) } else { Path::new(page).parent().unwrap().join(path) };
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(place);
    if !there.exists() {
        return Some(format!("{page}: ({target}) leads nowhere"));
    }
    if wanted.is_empty() || has_anchor(&std::fs::read_to_string(there).unwrap(), wanted) {
        return None;
    }
    Some(format!("{page}: ({target}) leads to no heading"))
}

#[test]
fn every_link_leads_somewhere() {
    let mut links_seen = 0;
    let mut wrong = Vec::new();
    for page in all() {
        for target in links(&prose(&file(&page))) {
            links_seen += 1;
            wrong.extend(broken(&page, &target));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(links_seen > 80, "only {links_seen} links");
}

#[test]
fn a_broken_link_is_found() {
    assert_eq!(links("a [b](c.md#d) and [e](https://f)"), ["c.md#d", "https://f"]);
    assert_eq!(broken("docs/README.md", "../README.md#try-it"), None);
    assert_eq!(broken("docs/README.md", "#what-was-run-and-what-was-not"), None);
    assert_eq!(broken("README.md", "https://example.com/nothing"), None);
    assert!(broken("docs/README.md", "README2.md").unwrap().contains("leads nowhere"));
    assert!(broken("docs/README.md", "../README.md#try").unwrap().contains("no heading"));
    // A comment of a shell block is no heading.
    assert!(!has_anchor("```sh\n# shell 3\n```\n", "shell-3") && has_anchor("## `a`, b-c: d\n", "a-b-c-d"));
}

#[test]
fn the_front_door_is_short() {
    for (page, most) in MAX_LINES {
        let lines = file(page).lines().count();
        assert!(lines <= *most, "{page} has {lines} lines, at most {most} are allowed: move details into docs/");
    }
}

/// The sentences of a page's paragraphs and list items; tables, headings and comments have none.
fn sentences(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in prose(text).lines() {
        let trimmed = line.trim();
        let other = trimmed.is_empty() || ["|", "#", "<!--", "!["].iter().any(|start| trimmed.starts_with(start));
        let item =
            trimmed.starts_with("- ") || trimmed.split_once(". ").is_some_and(|(number, _)| number.parse::<u8>().is_ok());
        if other || item {
            blocks.push(String::new());
        }
        if !other {
            let block = blocks.last_mut().unwrap();
            *block += trimmed;
            block.push(' ');
        }
    }
    let text = blocks.join("\0").replace(['?', '!', '\0'], ". ").replace(".** ", ". ");
    text.split(". ").filter(|sentence| !sentence.trim().is_empty()).map(str::to_owned).collect()
}

/// Words of one sentence. A code span and a link's target are no reading matter of their own.
fn words(sentence: &str) -> usize {
    sentence.split_whitespace().filter(|word| word.chars().any(char::is_alphanumeric)).count()
}

#[test]
fn sentences_are_short() {
    let mut counted = HashMap::new();
    let mut wrong = Vec::new();
    for page in all().iter().filter(|page| !ANY_SENTENCES.contains(&page.as_str())) {
        for sentence in sentences(&file(page)) {
            *counted.entry(page.clone()).or_insert(0) += 1;
            let words = words(&sentence);
            if words > MAX_WORDS {
                wrong.push(format!("{page}: {words} words, at most {MAX_WORDS}: {}", sentence.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(counted.values().sum::<i32>() > 200, "{counted:?}");
}

#[test]
fn a_long_sentence_is_found() {
    let long = "word ".repeat(26);
    assert_eq!(sentences(&format!("# Title\n\n- One. {long}\n- Two\n\n| {long} |\n")).len(), 3);
    assert_eq!(words(&long), 26);
    assert_eq!(words("a — b: `c d`"), 4);
}
