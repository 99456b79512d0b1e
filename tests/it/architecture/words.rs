//! The field's words: names that this project once had for what the field calls otherwise stay away. docs/GLOSSARY.md has the right ones.

use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};

/// Where a person paints a mask, on what the DOM calls a canvas.
const MASK_IN_BROWSER: &[&str] = &["src/host/http/page/assets/mask.js", "tests/clients/page.mjs", "docs/page.md"];
/// Never right here, in no file: each with the files that may have it all the same, for what they quote.
const NEVER: &[(&str, &[&str])] = &[
    // The checkpoint's own prompt, the words that the tiny models were trained with, and the name in earlier records.
    (
        "picture",
        &["crates/engine/src/qwen/text/", "crates/engine/tests/", "models/train/", "src/job/outcome.rs", "tests/it/store/"],
    ),
    ("pictures", &["src/job/outcome.rs", "tests/it/store/", "models/train/"]),
    ("paint", MASK_IN_BROWSER),
    ("paints", MASK_IN_BROWSER),
    ("painted", MASK_IN_BROWSER),
    ("painter", &[]),
    ("painting", &["models/train/"]),
    ("paintings", &[]),
    ("repaint", &[]),
    ("repainted", &[]),
    // A parameter of diffusers in the last.
    ("folder", &["src/config/renamed.rs", "tests/it/config/renamed.rs", "tests/oracle/ip_adapter.py"]),
    ("folders", &[]),
    // What EC2 gives before it takes a machine away, and what the MIT licence wants to be kept.
    ("notice", &[".ci/licences.py", "src/host/cloud/", "src/host/drain.rs", "tests/it/host/cloud.rs", "src/start/host.rs"]),
    ("notices", &["src/host/cloud/", "tests/it/host/cloud.rs"]),
    ("teller", &[]),
    ("keeper", &[]),
    ("keepers", &[]),
    // THIRD-PARTY is a file.
    (
        "party",
        &[
            "README.md",
            "CONTRIBUTING.md",
            "tests/it/deploy/licences.rs",
            "tests/it/deploy/release.rs",
            "deploy/release/archive.sh",
            ".ci/licences.py",
        ],
    ),
    ("parties", &[]),
    ("desk", &[]),
    ("glance", &[]),
    // What Pillow draws on.
    ("canvas", &["models/train/", "src/host/http/page/assets/mask.js", "tests/clients/page.mjs"]),
    ("setback", &[]),
    ("addressee", &[]),
    ("lettering", &[]),
    ("recycler", &[]),
    ("verdict", &[]),
    ("remedy", &[]),
];

/// Right in a sentence, never as the name of a type, a function, a module or a field of ours.
const NEVER_A_NAME: &[&str] = &[
    "beside",
    "board",
    "bring",
    "brought",
    "desk",
    "floor",
    "give_up",
    "held",
    "hurry",
    "lane",
    "let_go",
    "letter",
    "link",
    "longest",
    "look",
    "most",
    "numbers",
    "order",
    "orders",
    "ours",
    "outlet",
    "patience",
    "piece",
    "pieces",
    "product",
    "products",
    "prove",
    "proven",
    "put_back",
    "put_off",
    "seat",
    "settle",
    "settled",
    "settlement",
    "shelf",
    "standing",
    "tell",
    "told",
    "turn",
    "usual",
    "verdict",
    "whole",
    "wish",
    "wishes",
    "word",
    "words",
];

/// Files whose words are not ours, or that say what is gone.
const NOT_READ: &[&str] = &[
    "target",
    ".git",
    "bench/results",
    "tests/fixtures",
    "models/tiny-sd",
    "models/tiny-edit",
    "tests/it/architecture/words.rs",
];
const NOT_READ_NAMES: &[&str] = &["CHANGELOG.md", "Cargo.lock", "LICENSE", "THIRD-PARTY", "THIRD-PARTY-LICENSES"];
const READ: &[&str] = &["rs", "md", "py", "sh", "yaml", "toml", "json", "mjs", "js"];

fn texts(root: &Path, directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let own_name = path.file_name().unwrap().to_str().unwrap();
        if NOT_READ.contains(&name.as_str()) || NOT_READ_NAMES.contains(&own_name) || own_name == "__pycache__" {
            continue;
        }
        if path.is_dir() {
            texts(root, &path, found);
        } else if path.extension().is_some_and(|extension| READ.iter().any(|read| extension == *read))
            && let Ok(text) = fs::read_to_string(&path)
        {
            found.push((name, text));
        }
    }
}

/// The words of a text and of the names in it, in lower case: `StoredPicture` and `stored_picture` are two each.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in line.chars() {
        let begins = c.is_uppercase() && !before.is_uppercase();
        if !c.is_alphabetic() || begins {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().unwrap().extend(c.to_lowercase());
        }
        before = c;
    }
    words
}

fn violations(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        for word in words(text) {
            let banned = NEVER.iter().find(|(never, _)| *never == word);
            if banned.is_some_and(|(_, allowed)| !allowed.iter().any(|place| name.starts_with(place))) {
                found.push(format!("{name}:{line}: `{word}` is not the field's word; docs/GLOSSARY.md has it"));
            }
        }
    }
    found
}

/// Names that a file defines, each with its line.
#[derive(Default)]
struct Names(Vec<(usize, String)>);

impl Names {
    fn add(&mut self, ident: &syn::Ident) {
        self.0.push((ident.span().start().line, ident.to_string()));
    }
}

impl Names {
    /// A constant that is a bound is a `MAX_…`.
    fn add_bound(&mut self, ident: &syn::Ident) {
        let name = ident.to_string();
        let old = name.split('_').find(|word| ["MOST", "LONGEST"].contains(word));
        self.0.extend(old.map(|word| (ident.span().start().line, word.to_owned())));
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.add(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.add(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.add(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.add(&item.ident);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.add(&item.ident);
        visit::visit_item_mod(self, item);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.add(&signature.ident);
        visit::visit_signature(self, signature);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.add_bound(&item.ident);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.add_bound(&item.ident);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if let Some(ident) = &field.ident {
            self.add(ident);
        }
        visit::visit_field(self, field);
    }
}

fn bad_names(name: &str, text: &str) -> Vec<String> {
    let mut names = Names::default();
    names.visit_file(&syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {error}")));
    let bad = names.0.into_iter().filter(|(_, defined)| {
        let snake = words(defined).into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("_");
        NEVER_A_NAME.contains(&snake.as_str())
    });
    bad.map(|(line, defined)| format!("{name}:{line}: `{defined}` is no name for it; docs/GLOSSARY.md has one")).collect()
}

#[test]
fn only_the_fields_words_are_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    texts(root, root, &mut files);
    assert!(files.len() > 200, "found only {} files", files.len());
    let mut found: Vec<String> = files.iter().flat_map(|(name, text)| violations(name, text)).collect();
    let own = files.iter().filter(|(name, _)| {
        Path::new(name).extension().is_some_and(|extension| extension == "rs")
            && (name.starts_with("src/") || name.starts_with("crates/"))
            && !name.contains("/tests/")
    });
    found.extend(own.flat_map(|(name, text)| bad_names(name, text)));
    assert!(found.is_empty(), "{} old words:\n{}", found.len(), found.join("\n"));
}

#[test]
fn old_words_are_found_in_every_spelling() {
    for line in ["a picture", "let stored_picture = 1;", "struct StoredPicture;", "const PICTURE: u8 = 1;", "// Painted once."]
    {
        assert_eq!(violations("src/x.rs", line).len(), 1, "{line}");
    }
    assert!(violations("src/x.rs", "inpainting, a participant, noticed").is_empty());
    assert!(violations("src/host/cloud/interruption.rs", "a notice").is_empty());
    let names = "struct Order { words: u8 } fn look() { let order = 1; } mod reorder {} struct Ordering;";
    assert_eq!(bad_names("src/x.rs", names).len(), 3);
    let bounds = "const MOST_BYTES: u8 = 1; impl X { const LONGEST: u8 = 1; } fn f() { const WAITING_MOST: u8 = 1; const MAX_BYTES: u8 = 1; }";
    assert_eq!(bad_names("src/x.rs", bounds).len(), 3);
}
