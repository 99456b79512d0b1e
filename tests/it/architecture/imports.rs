//! What a file calls the types of others: two of one name get the names of their modules, not names that the file makes up.

use std::collections::BTreeMap;

use syn::UseTree;
use syn::visit::{self, Visit};

/// The types that one file, or a module written out in it, brings in or defines.
#[derive(Default)]
struct Types {
    /// How often each name is there, under whatever name.
    names: BTreeMap<String, usize>,
    /// What is renamed: line, own name, new name.
    renamed: Vec<(usize, String, String)>,
}

impl Types {
    fn add(&mut self, name: &syn::Ident) {
        let name = name.to_string();
        if name.starts_with(char::is_uppercase) {
            *self.names.entry(name).or_default() += 1;
        }
    }

    fn import(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => self.import(&path.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree)),
            UseTree::Name(name) => self.add(&name.ident),
            // For the methods of a trait alone: it has no name here.
            UseTree::Rename(rename) if rename.rename == "_" => {}
            UseTree::Rename(rename) => {
                self.add(&rename.ident);
                let line = rename.ident.span().start().line;
                self.renamed.push((line, rename.ident.to_string(), rename.rename.to_string()));
            }
            UseTree::Glob(_) => {}
        }
    }
}

impl<'ast> Visit<'ast> for Types {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.import(&item.tree);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.add(&item.ident);
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
}

fn complaints(name: &str, text: &str) -> Vec<String> {
    let mut types = Types::default();
    types.visit_file(&syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {error}")));
    let doubled = types.renamed.iter().filter(|(_, own, _)| types.names.get(own).is_some_and(|count| *count > 1));
    doubled.map(|(line, own, new)| format!("{name}:{line}: `{own}` is renamed `{new}`: name it by its module")).collect()
}

#[test]
fn two_types_of_one_name_have_the_names_of_their_modules() {
    let broken: Vec<_> = super::all_rust_files().iter().flat_map(|(name, text)| complaints(name, text)).collect();
    assert!(broken.is_empty(), "{} imports are renamed:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn a_renamed_type_next_to_one_of_its_name_is_found() {
    for code in [
        "use a::State as Shared;\nuse b::State;",
        "use a::{b, State as Shared};\nstruct State;",
        "use a::State as Shared;\nmod inner { enum State {} }",
        "use a::State as Shared;\nfn f() { use b::State; }",
    ] {
        assert_eq!(complaints("a.rs", code), ["a.rs:1: `State` is renamed `Shared`: name it by its module"], "{code}");
    }
    assert_eq!(complaints("a.rs", "use a::State as One;\nuse b::State as Other;").len(), 2);
}

#[test]
fn a_type_that_is_alone_may_be_renamed() {
    for code in [
        "use std::error::Error as StdError;",
        "use a::State;\nfn f(shared: b::State) {}",
        "use a::Read as _;\nuse b::Read;",
        "use a::state as shared;\nuse b::state;",
    ] {
        assert_eq!(complaints("a.rs", code), [""; 0], "{code}");
    }
}
