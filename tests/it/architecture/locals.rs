//! How a local gets its name: a closure is named only where two places use it, and one `let` binds one value.
//!
//! - A use is a path that is the name alone, up to where the name is bound anew: by a later `let`, a parameter, an arm, a loop.
//! - What a macro is called with is read as expressions, or as statements within braces. Where it is neither, each of its
//!   identifiers that is no field or method counts as a use.
//! - A closure that only a name makes possible (it calls itself, its borrow must end earlier) has a comment above that opens
//!   with `// Named` and says why.
//! - `let (a, b) = f()` and `let (Some(a), Some(b)) = (x, y) else` stay: those take one value apart.

use proc_macro2::{TokenStream, TokenTree};
use syn::parse::Parser as _;
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Expr, Pat, Stmt, Token};

const REASON: &str = "// Named";

/// What a macro is called with, as far as it is expressions or blocks of statements.
enum MacroInput {
    Expressions(Punctuated<Expr, Token![,]>),
    Statements(Vec<Stmt>),
    Tokens(Vec<TokenTree>),
}

impl MacroInput {
    /// `in_braces`: these tokens stood between braces.
    fn read(tokens: &TokenStream, in_braces: bool) -> Self {
        if let Ok(expressions) = Punctuated::parse_terminated.parse2(tokens.clone()) {
            return Self::Expressions(expressions);
        }
        match syn::Block::parse_within.parse2(tokens.clone()) {
            Ok(statements) if in_braces => Self::Statements(statements),
            _ => Self::Tokens(tokens.clone().into_iter().collect()),
        }
    }
}

fn is_braced(group: &proc_macro2::Group) -> bool {
    group.delimiter() == proc_macro2::Delimiter::Brace
}

/// Whether a pattern binds a name.
struct Binds<'a> {
    name: &'a str,
    found: bool,
}

impl<'ast> Visit<'ast> for Binds<'_> {
    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        self.found |= pattern.ident == self.name;
        visit::visit_pat_ident(self, pattern);
    }

    // Patterns of a condition bind in its branch, those of a block or a closure inside of it do not.
    fn visit_block(&mut self, _: &'ast syn::Block) {}
    fn visit_expr_closure(&mut self, _: &'ast syn::ExprClosure) {}
}

fn binds(name: &str, visit: impl FnOnce(&mut Binds)) -> bool {
    let mut binds = Binds { name, found: false };
    visit(&mut binds);
    binds.found
}

/// How often a name is used before something else takes it.
struct Uses<'a> {
    name: &'a str,
    count: usize,
}

impl Uses<'_> {
    fn binds(&self, pattern: &Pat) -> bool {
        binds(self.name, |binds| binds.visit_pat(pattern))
    }

    fn statements(&mut self, statements: &[Stmt]) {
        for statement in statements {
            visit::visit_stmt(self, statement);
            if matches!(statement, Stmt::Local(local) if self.binds(&local.pat)) {
                return;
            }
        }
    }

    fn tokens(&mut self, tokens: &TokenStream, in_braces: bool) {
        match MacroInput::read(tokens, in_braces) {
            MacroInput::Expressions(expressions) => expressions.iter().for_each(|expression| self.visit_expr(expression)),
            MacroInput::Statements(statements) => self.statements(&statements),
            MacroInput::Tokens(trees) => {
                let mut after_dot = false;
                for tree in trees {
                    match &tree {
                        TokenTree::Ident(ident) => self.count += usize::from(*ident == self.name && !after_dot),
                        TokenTree::Group(group) => self.tokens(&group.stream(), is_braced(group)),
                        TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                    }
                    after_dot = matches!(tree, TokenTree::Punct(punct) if punct.as_char() == '.');
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        self.count += usize::from(path.path.is_ident(self.name));
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        self.statements(&block.stmts);
    }

    fn visit_expr_closure(&mut self, closure: &'ast syn::ExprClosure) {
        if !closure.inputs.iter().any(|input| self.binds(input)) {
            visit::visit_expr_closure(self, closure);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !self.binds(&arm.pat) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_expr_for_loop(&mut self, looped: &'ast syn::ExprForLoop) {
        self.visit_expr(&looped.expr);
        if !self.binds(&looped.pat) {
            self.visit_block(&looped.body);
        }
    }

    fn visit_expr_if(&mut self, branch: &'ast syn::ExprIf) {
        self.visit_expr(&branch.cond);
        if !binds(self.name, |binds| binds.visit_expr(&branch.cond)) {
            self.visit_block(&branch.then_branch);
        }
        branch.else_branch.iter().for_each(|(_, other)| self.visit_expr(other));
    }

    fn visit_expr_while(&mut self, looped: &'ast syn::ExprWhile) {
        self.visit_expr(&looped.cond);
        if !binds(self.name, |binds| binds.visit_expr(&looped.cond)) {
            self.visit_block(&looped.body);
        }
    }

    // An item inside of a function does not see its locals.
    fn visit_item(&mut self, _: &'ast syn::Item) {}

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(&call.tokens, matches!(call.delimiter, syn::MacroDelimiter::Brace(_)));
    }
}

/// The `let`s that break a rule, each with its line.
struct Locals<'a> {
    lines: Vec<&'a str>,
    found: Vec<(usize, String)>,
}

impl Locals<'_> {
    fn statements(&mut self, statements: &[Stmt]) {
        for (index, statement) in statements.iter().enumerate() {
            visit::visit_stmt(self, statement);
            if let Stmt::Local(local) = statement {
                self.local(local, &statements[index + 1..]);
            }
        }
    }

    fn local(&mut self, local: &syn::Local, rest: &[Stmt]) {
        let Some(init) = local.init.as_ref().filter(|init| init.diverge.is_none()) else { return };
        let line = local.let_token.span.start().line;
        match (without_type(&local.pat), &*init.expr) {
            (Pat::Tuple(_), Expr::Tuple(_)) => {
                self.found.push((line, "one `let` binds a tuple of values: write a `let` for each".to_owned()));
            }
            (Pat::Ident(pattern), value) if is_closure(value) && !self.has_reason(line) => {
                let name = pattern.ident.to_string();
                let mut uses = Uses { name: &name, count: 0 };
                uses.statements(rest);
                if uses.count < 2 {
                    let what = format!("the closure `{name}` is used only once: write it there, or make it a function");
                    self.found.push((line, what));
                }
            }
            _ => {}
        }
    }

    /// Whether the comment above this line says why the closure has a name.
    fn has_reason(&self, line: usize) -> bool {
        let above = self.lines[..line - 1].iter().rev().map(|line| line.trim());
        above.take_while(|line| line.starts_with("//")).any(|line| line.starts_with(REASON))
    }

    fn tokens(&mut self, tokens: &TokenStream, in_braces: bool) {
        match MacroInput::read(tokens, in_braces) {
            MacroInput::Expressions(expressions) => expressions.iter().for_each(|expression| self.visit_expr(expression)),
            MacroInput::Statements(statements) => self.statements(&statements),
            MacroInput::Tokens(trees) => {
                for tree in trees {
                    if let TokenTree::Group(group) = tree {
                        self.tokens(&group.stream(), is_braced(&group));
                    }
                }
            }
        }
    }
}

impl<'ast> Visit<'ast> for Locals<'_> {
    fn visit_block(&mut self, block: &'ast syn::Block) {
        self.statements(&block.stmts);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(&call.tokens, matches!(call.delimiter, syn::MacroDelimiter::Brace(_)));
    }
}

fn without_type(pattern: &Pat) -> &Pat {
    if let Pat::Type(typed) = pattern { &typed.pat } else { pattern }
}

fn is_closure(value: &Expr) -> bool {
    match value {
        Expr::Closure(_) => true,
        Expr::Reference(reference) => is_closure(&reference.expr),
        Expr::Paren(inner) => is_closure(&inner.expr),
        _ => false,
    }
}

fn complaints(text: &str) -> Vec<(usize, String)> {
    let mut locals = Locals { lines: text.lines().collect(), found: Vec::new() };
    locals.visit_file(&syn::parse_file(text).unwrap());
    locals.found.sort();
    locals.found
}

#[test]
fn a_closure_with_a_name_is_used_twice_and_a_let_binds_one_value() {
    let mut broken = Vec::new();
    for (name, text) in super::all_rust_files() {
        let found = complaints(&text);
        broken.extend(found.into_iter().map(|(line, what)| format!("{name}:{line}: {what}")));
    }
    assert!(broken.is_empty(), "{} locals break the house rules:\n{}", broken.len(), broken.join("\n"));
}

/// What is said about the statements of a function.
fn complaints_in(statements: &str) -> String {
    let found = complaints(&format!("fn f() {{\n{statements}\n}}"));
    found.into_iter().map(|(line, what)| format!("{}: {what}", line - 1)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_closure_that_is_used_once_is_found() {
    for statements in [
        "let once = |x| x + 1;\nonce(2)",
        "let once = move || g();\nthread::spawn(once)",
        "let once = async |x: u8| g(x).await;\nonce(2)",
        "let mut once = || g();\nonce()",
        "let once: &dyn Fn() = &|| g();\nh(once)",
        "let once = |x| x;\nassert_eq!(once(2), 2)",
        "let once = |x| x;\nselect! { _ = once(2) => {} }",
        "let once = |x| x;\nmacro_of_ours!(x.once, once => 2)",
        "let once = |x| x;\nonce(2);\nlet once = 3;\ng(once, once)",
        "let once = |x| x;\nlet once = once(2);\ng(once, once)",
        "let once = |x| x;\nonce(2);\ng(|once| once + 1)",
        "let once = |x| x;\nonce(2);\nmatch y { Some(once) => g(once), None => {} }",
        "let once = |x| x;\nonce(2);\nfor once in y { g(once) }",
        "let once = |x| x;\nonce(2);\nif let Some(once) = y { g(once) }",
        "let once = |x| x;\nonce(2);\nwhile let Some(once) = y { g(once) }",
        "let once = |x| x;\nonce(2);\nfn inner() { once(2) }",
        "let once = |x| x;\ny.once(once).once;\nS { once: 2 }",
    ] {
        let found = complaints_in(statements);
        assert!(found.starts_with("1: the closure `once` is used only once"), "{statements}\nfound: {found}");
    }
    for statements in ["\nif a {\nlet once = || g();\nonce() }", "\nh! {\nlet once = || g();\nonce() }"] {
        assert!(complaints_in(statements).starts_with("3: the closure `once`"), "{statements}");
    }
}

#[test]
fn a_let_of_several_values_is_found() {
    for statements in [
        "let (a, b) = (1, 2);",
        "let (mut a, _): (u8, u8) = (g(), 2);",
        "g(|| { let ((a, b), c) = (g(), 2); })",
        "assert!(y.iter().all(|x| { let (a, b) = (x, 1); a == b }))",
    ] {
        assert!(complaints_in(statements).starts_with("1: one `let` binds a tuple"), "{statements}");
    }
}

#[test]
fn what_has_its_reason_passes() {
    for statements in [
        "let twice = |x| x + 1;\ntwice(2) + twice(3)",
        "let twice = |x| x + 1;\nassert_eq!(twice(2), twice(3))",
        "let twice = |x| x + 1;\ng(&twice);\nS { twice }",
        "let twice = |x| x + 1;\nselect! { _ = twice(2) => {}, _ = twice(3) => {} }",
        "let twice = |x| x + 1;\nif let Some(x) = twice(2) { twice(x) }",
        "let twice = |x| x + 1;\nlet twice = |x| twice(twice(x));\ntwice(twice(1))",
        "// Named, since it must be dropped before the return.\n// Else it borrows.\nlet once = |x| x;\nonce(2)",
        "let values = y.map(|x| x + 1);\nvalues.collect()",
        "let (a, b) = g();\nlet (c, d) = if a { (1, 2) } else { (2, 1) };",
        "let (Some(a), Some(b)) = (g(), h()) else { return };",
        "(a, b) = (b, a);",
    ] {
        assert_eq!(complaints_in(statements), "", "{statements}");
    }
}
