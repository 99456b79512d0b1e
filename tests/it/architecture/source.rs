//! Reads one Rust file into what the house rules look at: paths, functions, unfinished work, build features.

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// A path as its parts.
pub(super) type Parts = Vec<String>;

pub(super) struct Function {
    pub(super) line: usize,
    /// Lines between the braces.
    pub(super) lines: usize,
}

/// A path that a file takes from elsewhere, outside of `#[cfg(test)]`.
pub(super) struct Import {
    pub(super) line: usize,
    pub(super) path: Parts,
    /// The item of the file that needs it, such as a type with its `impl`s; none: a `use` of the file.
    pub(super) item: Option<String>,
}

/// Everything with the line it stands on.
#[derive(Default)]
pub(super) struct Source {
    /// Paths into what is ours, without the leading `crate`; `super` and `self` are resolved. A crate in crates/ is a module like those of
    /// src/: `atelier_engine::sd`, and `crate::sd` inside of it, are `engine::sd`.
    pub(super) own_paths: Vec<(usize, Parts)>,
    /// Those of `own_paths` and of `foreign_paths` that stand outside of `#[cfg(test)]`: what the file is built on. A path that
    /// names neither a crate nor `self` may begin with a child module.
    pub(super) imports: Vec<Import>,
    /// The items that use a name without a path, with the line and the name.
    pub(super) names: Vec<(String, usize, String)>,
    /// What the file defines itself: types, traits, functions, constants.
    pub(super) items: Vec<String>,
    /// Names that the file's `use`s bring into it, with the paths they stand for.
    pub(super) bound: Vec<(String, Parts)>,
    /// All other paths of two parts or more.
    pub(super) foreign_paths: Vec<(usize, Parts)>,
    pub(super) functions: Vec<Function>,
    pub(super) unfinished: Vec<(usize, String)>,
    pub(super) features: Vec<usize>,
    /// The crate in crates/ that the file is of; empty for the package itself.
    root: Parts,
    /// How many `#[cfg(test)]` modules the visitor is in.
    tests: usize,
    /// Module path of the place the visitor is at, such as `engine::sd`.
    module: Parts,
    /// The item of the file that the visitor is in.
    item: Option<String>,
}

impl Source {
    /// `name` is the file's path in the repository, such as `src/engine/sd/unet.rs`.
    pub(super) fn read(name: &str, text: &str) -> Result<Self, syn::Error> {
        let file = syn::parse_file(text)?;
        let (root, inside) = match name.strip_prefix("crates/").and_then(|inside| inside.split_once("/src/")) {
            Some((root, inside)) => (vec![root.to_owned()], inside),
            None => (Vec::new(), name.trim_start_matches("src/")),
        };
        let inside = inside.trim_end_matches(".rs").split('/').map(str::to_owned);
        let module = root.iter().cloned().chain(inside.filter(|part| part != "mod" && part != "lib")).collect();
        let mut source = Self { root, module, ..Self::default() };
        // Comments are not in the syntax tree.
        for (line, text) in (1..).zip(text.lines()) {
            let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat()];
            let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let found = marks.into_iter().filter(|mark| words.contains(&mark.as_str()));
            source.unfinished.extend(found.map(|mark| (line, mark)));
        }
        for item in &file.items {
            source.item = name_of(item);
            // An `impl` may be of a type that another file defines.
            if !matches!(item, syn::Item::Impl(_)) {
                source.items.extend(source.item.clone());
            }
            source.visit_item(item);
        }
        Ok(source)
    }

    fn path(&mut self, span: Span, mut parts: Parts) {
        let line = span.start().line;
        match parts[0].as_str() {
            "crate" => {
                parts.splice(..1, self.root.iter().cloned());
                self.import(line, parts.clone());
                self.own_paths.push((line, parts));
            }
            "atelier" => {
                parts.remove(0);
                self.import(line, parts.clone());
                self.own_paths.push((line, parts));
            }
            ours if ours.starts_with("atelier_") => {
                let own_name = ours.trim_start_matches("atelier_").to_owned();
                parts[0] = own_name;
                self.import(line, parts.clone());
                self.own_paths.push((line, parts));
            }
            "self" | "super" => {
                let ups = parts.iter().filter(|part| *part == "super").count();
                let mut whole = self.module[..self.module.len().saturating_sub(ups)].to_vec();
                whole.extend(parts.into_iter().filter(|part| part != "super" && part != "self"));
                self.import(line, whole.clone());
                self.own_paths.push((line, whole));
            }
            _ => {
                let inside = self.module.iter().cloned().chain(parts.iter().cloned()).collect();
                self.import(line, inside);
                self.foreign_paths.push((line, parts));
            }
        }
    }

    fn import(&mut self, line: usize, path: Parts) {
        if self.tests == 0 {
            self.imports.push(Import { line, path, item: self.item.clone() });
        }
    }

    fn bind(&mut self, name: String) {
        if let (0, None, Some(import)) = (self.tests, &self.item, self.imports.last()) {
            self.bound.push((name, import.path.clone()));
        }
    }

    fn use_tree(&mut self, before: &Parts, tree: &syn::UseTree) {
        let with = |part: String| before.iter().cloned().chain([part]).collect::<Parts>();
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&with(path.ident.to_string()), &path.tree),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.use_tree(before, tree)),
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.path(name.span(), before.clone());
                self.bind(before.last().cloned().unwrap_or_default());
            }
            syn::UseTree::Name(name) => {
                self.path(name.span(), with(name.ident.to_string()));
                self.bind(name.ident.to_string());
            }
            syn::UseTree::Rename(rename) => {
                self.path(rename.span(), with(rename.ident.to_string()));
                self.bind(rename.rename.to_string());
            }
            syn::UseTree::Glob(glob) => self.path(glob.span(), with("*".to_owned())),
        }
    }

    /// What a macro is called with is not parsed by syn: paths are picked out of its tokens.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut parts: Parts = Vec::new();
        let mut start = Span::call_site();
        let mut colons = 0;
        for token in tokens.into_iter().chain([TokenTree::Punct(proc_macro2::Punct::new(';', proc_macro2::Spacing::Alone))]) {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) if colons == 2 && !parts.is_empty() => parts.push(ident.to_string()),
                other => {
                    let path = std::mem::take(&mut parts);
                    match path.len() {
                        0 => {}
                        1 => self.name(start, &path[0]),
                        _ => self.path(start, path),
                    }
                    start = other.span();
                    match other {
                        TokenTree::Ident(ident) => parts.push(ident.to_string()),
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                    }
                }
            }
            colons = 0;
        }
    }

    /// One name alone may be that of an item of the file, or of a variable.
    fn name(&mut self, span: Span, name: &str) {
        if self.tests == 0
            && let Some(item) = &self.item
        {
            self.names.push((item.clone(), span.start().line, name.to_owned()));
        }
    }

    fn function(&mut self, span: Span, body: &syn::Block) {
        let lines = (body.span().end().line - body.span().start().line).saturating_sub(1);
        self.functions.push(Function { line: span.start().line, lines });
    }
}

/// What an item of a file is called; an `impl` belongs to its type. None: what defines nothing, such as a `use`.
fn name_of(item: &syn::Item) -> Option<String> {
    let name = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Mod(item) => item.content.is_some().then_some(&item.ident)?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        syn::Item::Impl(item) => {
            let syn::Type::Path(path) = &*item.self_ty else { return None };
            &path.path.segments.last()?.ident
        }
        _ => return None,
    };
    Some(name.to_string())
}

fn is_for_tests(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg") && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string() == "test")
}

fn names_a_feature(tokens: &TokenStream) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "feature",
        TokenTree::Group(group) => names_a_feature(&group.stream()),
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Source {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        let is_test = module.attrs.iter().any(is_for_tests);
        self.module.push(module.ident.to_string());
        self.tests += usize::from(is_test);
        visit::visit_item_mod(self, module);
        self.tests -= usize::from(is_test);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&Vec::new(), &item.tree);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(crate)` and `pub(super)` import nothing.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.path(path.span(), path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        } else if let Some(segment) = path.segments.first() {
            self.name(path.span(), &segment.ident.to_string());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = call.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        let line = call.span().start().line;
        if name == "todo" || name == "unimplemented" {
            self.unfinished.push((line, format!("{name}!")));
        }
        if name == "cfg" && names_a_feature(&call.tokens) {
            self.features.push(line);
        }
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        let line = attribute.span().start().line;
        let is = |name: &str| attribute.path().is_ident(name);
        if is("ignore") {
            self.unfinished.push((line, "#[ignore]".to_owned()));
        }
        if let (true, syn::Meta::List(list)) = (is("cfg") || is("cfg_attr"), &attribute.meta)
            && names_a_feature(&list.tokens)
        {
            self.features.push(line);
        }
        visit::visit_attribute(self, attribute);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.function(function.span(), &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.function(function.span(), &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(body) = &function.default {
            self.function(function.span(), body);
        }
        visit::visit_trait_item_fn(self, function);
    }
}
