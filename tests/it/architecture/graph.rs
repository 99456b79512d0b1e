//! Which file of a crate imports which: no circle, and nothing that imports backward.
//!
//! - A file imports the file that owns what one of its paths names: `crate::`, `super::`, `self::`, or a child module's name.
//!   `mod child;` alone imports nothing. What stands in `#[cfg(test)]` is not looked at.
//! - A circle is a set of files that all reach each other.
//! - A `mod.rs` holds what its directory has in common, and may also call its children. So each of its items (a type with its
//!   `impl`s, a function) counts for itself: what a child takes from it must not lead back to that child.
//! - One child of a directory, with all below it, imports backward when the other one imports it as well, by whatever files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::source::{Import, Parts, Source};

/// The import graph of one crate.
struct Graph {
    /// Names of files by module path, such as `src/host/mod.rs` by `host`.
    files: BTreeMap<Parts, String>,
    /// From importer to imported, each with the first line that says so.
    imports: BTreeMap<Parts, BTreeMap<Parts, usize>>,
}

impl Graph {
    /// `sources`: the crate's directory of sources, such as `src`. `files`: names in the repository and contents.
    fn read<'a>(sources: &str, files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut read = Vec::new();
        let mut names = BTreeMap::new();
        for (name, text) in files {
            let inside = name.strip_prefix(sources).map_or(name, |inside| inside.trim_start_matches('/'));
            let source = Source::read(inside, text).unwrap_or_default();
            let module = module(inside);
            names.insert(module.clone(), name.to_owned());
            read.push((module, source));
        }
        for (module, source) in &read {
            if read.iter().any(|(other, _)| is_below(other, module)) {
                let file = names[module].clone();
                names.extend(source.items.iter().map(|item| (node(module, item), format!("{file} ({item})"))));
            }
        }
        let bound: BTreeMap<Parts, Parts> = read.iter().flat_map(|(module, source)| bound(module, source)).collect();
        let mut imports: BTreeMap<Parts, BTreeMap<Parts, usize>> = BTreeMap::new();
        for (module, source) in read {
            imports.entry(module.clone()).or_default();
            let names_used = source.names.into_iter().filter_map(|(item, line, name)| {
                let path = inside(&module, &name);
                // A child module is no value: what has its name is a variable.
                (!names.contains_key(&path)).then_some(Import { line, path, item: Some(item) })
            });
            for Import { line, path, item } in source.imports.into_iter().chain(names_used) {
                let Some(owner) = owner(&names, &bound, &module, path) else { continue };
                // What a file takes from itself counts for its items only.
                if file_of(&owner) != module {
                    imports.entry(module.clone()).or_default().entry(owner.clone()).or_insert(line);
                }
                let importer = item.map(|item| node(&module, &item)).filter(|node| names.contains_key(node) && *node != owner);
                if let Some(importer) = importer {
                    imports.entry(importer).or_default().entry(owner).or_insert(line);
                }
            }
        }
        Self { files: names, imports }
    }

    /// One line for each set of files that import each other.
    fn circles(&self) -> Vec<String> {
        let edges = self.imports.iter().map(|(from, to)| (from.clone(), to.keys().cloned().collect())).collect();
        circles(&edges).iter().map(|circle| format!("a circle: {}", self.within(circle))).collect()
    }

    /// One line for each set of neighbours in a directory that import each other.
    fn backward(&self) -> Vec<String> {
        let mut directories: BTreeMap<Parts, BTreeMap<Parts, BTreeSet<Parts>>> = BTreeMap::new();
        let mut witnesses: BTreeMap<(Parts, Parts), String> = BTreeMap::new();
        for (from, to, line) in self.edges() {
            let shared = from.iter().zip(to).take_while(|(left, right)| left == right).count();
            // One of them is the other's `mod.rs` or lies below it: no neighbours.
            if from.len() == shared || to.len() == shared {
                continue;
            }
            let importer = from[..=shared].to_vec();
            let imported = to[..=shared].to_vec();
            let witness = format!("{}:{line} -> {}", self.files[from], self.files[to]);
            witnesses.entry((importer.clone(), imported.clone())).or_insert(witness);
            directories.entry(from[..shared].to_vec()).or_default().entry(importer).or_default().insert(imported);
        }
        let mut found = Vec::new();
        for circle in directories.values().flat_map(circles) {
            let inside = witnesses.iter().filter(|((from, to), _)| circle.contains(from) && circle.contains(to));
            let inside: Vec<&str> = inside.map(|(_, witness)| witness.as_str()).collect();
            found.push(format!("a backward import: {}", inside.join(", ")));
        }
        found
    }

    fn edges(&self) -> impl Iterator<Item = (&Parts, &Parts, usize)> {
        self.imports.iter().flat_map(|(from, to)| to.iter().map(move |(to, line)| (from, to, *line)))
    }

    fn within(&self, circle: &BTreeSet<Parts>) -> String {
        let inside = self.edges().filter(|(from, to, _)| circle.contains(*from) && circle.contains(*to));
        let lines: Vec<String> =
            inside.map(|(from, to, line)| format!("{}:{line} -> {}", self.files[from], self.files[to])).collect();
        lines.join(", ")
    }
}

/// The module that the file `inside` a crate's sources is.
fn module(inside: &str) -> Parts {
    let parts = inside.trim_end_matches(".rs").split('/').filter(|part| *part != "mod" && *part != "lib");
    parts.map(str::to_owned).collect()
}

/// Whether the file or item `inner` belongs to what `outer` is the root of.
fn is_below(inner: &Parts, outer: &Parts) -> bool {
    inner.len() > outer.len() && inner.starts_with(outer)
}

/// An item of a file, as a neighbour of the file's children.
fn node(module: &[String], item: &str) -> Parts {
    inside(module, &format!("#{item}"))
}

fn inside(module: &[String], name: &str) -> Parts {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn is_item(node: &Parts) -> bool {
    node.last().is_some_and(|part| part.starts_with('#'))
}

/// The file that a node is or lies in.
fn file_of(node: &Parts) -> &[String] {
    if is_item(node) { &node[..node.len() - 1] } else { node }
}

/// The names that a file's `use`s bring into it, as paths in that file, with what they stand for.
fn bound(module: &Parts, source: &Source) -> Vec<(Parts, Parts)> {
    source.bound.iter().map(|(name, path)| (inside(module, name), path.clone())).filter(|(name, path)| name != path).collect()
}

/// What a `path` in the file `importer` leads to: another file, or an item of its own file or of one above it.
fn owner(names: &BTreeMap<Parts, String>, bound: &BTreeMap<Parts, Parts>, importer: &Parts, mut path: Parts) -> Option<Parts> {
    loop {
        // The longest beginning of the path that is a file; what follows is an item in it.
        let length = (0..=path.len()).rev().find(|length| names.contains_key(&path[..*length]))?;
        let file = path[..length].to_vec();
        if !importer.starts_with(&file) {
            return Some(file);
        }
        let Some(name) = path.get(length).filter(|name| *name != "*") else { return (file != *importer).then_some(file) };
        let item = node(&file, name);
        if names.contains_key(&item) {
            return Some(item);
        }
        // A name that the file itself has from elsewhere; a path that comes back to itself is of another crate.
        let target = bound.get(&path[..=length])?;
        let next: Parts = target.iter().chain(&path[length + 1..]).cloned().collect();
        if next.starts_with(&path[..=length]) {
            return None;
        }
        path = next;
    }
}

/// The sets that all reach each other and are of two files or more (Tarjan would be faster; a crate has a few hundred files).
fn circles(edges: &BTreeMap<Parts, BTreeSet<Parts>>) -> Vec<BTreeSet<Parts>> {
    let reached: BTreeMap<&Parts, BTreeSet<&Parts>> = edges.keys().map(|start| (start, reachable(edges, start))).collect();
    let mut found: Vec<BTreeSet<Parts>> = Vec::new();
    for (start, reach) in &reached {
        let mutual = reach.iter().filter(|end| reached.get(*end).is_some_and(|back| back.contains(start)));
        let circle: BTreeSet<Parts> = mutual.map(|end| (*end).clone()).collect();
        let files: BTreeSet<&[String]> = circle.iter().map(file_of).collect();
        if files.len() > 1 && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

fn reachable<'a>(edges: &'a BTreeMap<Parts, BTreeSet<Parts>>, start: &Parts) -> BTreeSet<&'a Parts> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&Parts> = edges.get(start).into_iter().flatten().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(edges.get(next).into_iter().flatten());
        }
    }
    reached
}

#[test]
fn no_files_import_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut crates = vec!["src".to_owned()];
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        crates.push(format!("crates/{}/src", entry.unwrap().file_name().to_str().unwrap()));
    }
    let mut broken = Vec::new();
    for sources in &crates {
        let mut paths = Vec::new();
        super::rust_files(&root.join(sources), &mut paths);
        assert!(!paths.is_empty(), "{sources} has no files");
        let files = paths.iter().map(|path| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        });
        let files: Vec<_> = files.collect();
        let graph = Graph::read(sources, files.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        broken.extend(graph.circles());
        broken.extend(graph.backward());
    }
    assert!(broken.is_empty(), "{} imports go in circles:\n{}", broken.len(), broken.join("\n"));
}

fn complaints(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let graph = Graph::read("src", files.iter().copied());
    (graph.circles(), graph.backward())
}

#[test]
fn circles_and_backward_imports_are_found() {
    let two = [("src/a.rs", "use crate::b::B;\nstruct A;"), ("src/b.rs", "\nfn f() -> super::a::A { todo() }")];
    let (circles, backward) = complaints(&two);
    assert_eq!(circles, ["a circle: src/a.rs:1 -> src/b.rs, src/b.rs:2 -> src/a.rs"]);
    assert_eq!(backward, ["a backward import: src/a.rs:1 -> src/b.rs, src/b.rs:2 -> src/a.rs"]);
    let three = [
        ("src/x/a.rs", "use super::b;"),
        ("src/x/b.rs", "fn f() { g!(crate::x::c::go()) }"),
        ("src/x/c.rs", "use crate::{x::a::A, y};"),
        ("src/y.rs", ""),
    ];
    let expected = "a circle: src/x/a.rs:1 -> src/x/b.rs, src/x/b.rs:1 -> src/x/c.rs, src/x/c.rs:1 -> src/x/a.rs";
    assert_eq!(complaints(&three).0, [expected]);
    let through_a_child =
        [("src/x/mod.rs", "mod a;\nfn f() { a::go() }"), ("src/x/a.rs", "use crate::y;"), ("src/y.rs", "use crate::x;")];
    let expected = "a circle: src/x/mod.rs:2 -> src/x/a.rs, src/x/a.rs:1 -> src/y.rs, src/y.rs:1 -> src/x/mod.rs";
    assert_eq!(complaints(&through_a_child).0, [expected]);
    let directories = [
        ("src/x/mod.rs", "pub mod a;\npub mod b;"),
        ("src/x/a.rs", "use crate::y::c;"),
        ("src/x/b.rs", ""),
        ("src/y/c.rs", ""),
        ("src/y/d.rs", "use crate::x::b;"),
    ];
    let (circles, backward) = complaints(&directories);
    assert_eq!(circles, [""; 0], "no file reaches itself");
    assert_eq!(backward, ["a backward import: src/x/a.rs:1 -> src/y/c.rs, src/y/d.rs:1 -> src/x/b.rs"]);
}

#[test]
fn a_mod_file_that_leads_back_to_its_child_is_a_circle() {
    let child = ("src/x/a.rs", "use super::X;\npub struct A;\npub fn go() {}");
    let expected = ["a circle: src/x/mod.rs (X):2 -> src/x/a.rs, src/x/a.rs:1 -> src/x/mod.rs (X)"];
    for root in [
        "mod a;\npub struct X(a::A);",
        "mod a; use self::a::A;\npub struct X(A);",
        "mod a; use self::a::A as B; pub struct X;\nimpl X { fn f() { m!(B) } }",
        "mod a; pub struct X;\nimpl std::ops::Neg for X { fn neg(self) { self::a::go() } }",
    ] {
        assert_eq!(complaints(&[("src/x/mod.rs", root), child]).0, expected, "{root}");
    }
    // By way of another item, and for a crate's root.
    let root = ("src/lib.rs", "mod a;\npub fn f() { g() }\nfn g() { a::go() }");
    let expected = "a circle: src/lib.rs (f):2 -> src/lib.rs (g), src/lib.rs (g):3 -> src/a.rs, src/a.rs:1 -> src/lib.rs (f)";
    assert_eq!(complaints(&[root, ("src/a.rs", "fn h() { crate::f() }\npub fn go() {}")]).0, [expected]);
}

#[test]
fn what_is_no_circle_passes() {
    let files = [
        ("src/lib.rs", "pub mod x;\npub mod y;"),
        ("src/x/mod.rs", "mod a;\nmod b;\npub struct X;\nfn f(x: X) { a::go(); self::b::go(); let b = m!(b); }"),
        ("src/x/a.rs", "use super::X;\nuse super::b;"),
        ("src/x/b.rs", "use crate::y::Y;\n#[cfg(test)]\nmod tests { use crate::x::a; }"),
        ("src/y.rs", "use std::fs;\nuse atelier::z;\nfn f() { y::f() }"),
    ];
    assert_eq!(complaints(&files), (Vec::new(), Vec::new()));
}
