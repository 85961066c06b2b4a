//! What the rules need to know of Rust source: functions with their lines, and the files that a file brings in.

use std::path::Path;

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::Visit;

/// A function with a body.
pub struct Function {
    /// Its name, with the type it belongs to.
    pub name: String,
    /// The line of its signature.
    pub line: usize,
    /// Lines from the signature to the closing brace.
    pub lines: usize,
}

fn parse(path: &str, text: &str) -> syn::File {
    match syn::parse_file(text) {
        Ok(file) => file,
        Err(e) => panic!("{path}:{}: is not Rust ({e})", e.span().start().line),
    }
}

/// The functions of a file.
///
/// # Panics
/// If the text is not Rust.
pub fn functions(path: &str, text: &str) -> Vec<Function> {
    let mut visitor = Functions { owner: Vec::new(), found: Vec::new() };
    visitor.visit_file(&parse(path, text));
    visitor.found
}

struct Functions {
    owner: Vec<String>,
    found: Vec<Function>,
}

impl Functions {
    fn add(&mut self, name: &syn::Ident, signature: Span, body: Span) {
        let (line, end) = (signature.start().line, body.end().line);
        let mut owner = self.owner.clone();
        owner.push(name.to_string());
        self.found.push(Function { name: owner.join("::"), line, lines: end - line + 1 });
    }
}

impl<'a> Visit<'a> for Functions {
    fn visit_item_fn(&mut self, f: &'a syn::ItemFn) {
        self.add(&f.sig.ident, f.sig.span(), f.block.span());
        syn::visit::visit_item_fn(self, f);
    }
    fn visit_impl_item_fn(&mut self, f: &'a syn::ImplItemFn) {
        self.add(&f.sig.ident, f.sig.span(), f.block.span());
        syn::visit::visit_impl_item_fn(self, f);
    }
    fn visit_trait_item_fn(&mut self, f: &'a syn::TraitItemFn) {
        if let Some(body) = &f.default {
            self.add(&f.sig.ident, f.sig.span(), body.span());
        }
        syn::visit::visit_trait_item_fn(self, f);
    }
    fn visit_item_impl(&mut self, item: &'a syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map_or_else(String::new, |s| s.ident.to_string()),
            _ => String::new(),
        };
        self.owner.push(name);
        syn::visit::visit_item_impl(self, item);
        self.owner.pop();
    }
}

/// The files that the `mod` declarations of a file may mean, relative to the repository; of each declaration, one exists.
///
/// # Panics
/// If the text is not Rust.
pub fn modules(path: &str, text: &str) -> Vec<String> {
    let file = Path::new(path);
    let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let stem = file.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    // The files in these places are roots, or named after their folder: their modules lie beside them.
    let root = matches!(stem.as_str(), "mod" | "lib" | "main")
        || ["tests", "examples", "benches", "bin", "fuzz_targets"].iter().any(|root| folder.ends_with(root));
    let inner = if root { folder.clone() } else { folder.join(stem) };
    let mut out = Vec::new();
    declared(&parse(path, text).items, &inner, &folder, &mut out);
    out
}

fn declared(items: &[syn::Item], inner: &Path, folder: &Path, out: &mut Vec<String>) {
    for item in items {
        let syn::Item::Mod(module) = item else { continue };
        let name = module.ident.to_string();
        if let Some((_, items)) = &module.content {
            declared(items, &inner.join(&name), &inner.join(&name), out);
        } else if let Some(path) = path_attribute(module) {
            out.push(normal(&folder.join(path)));
        } else {
            out.push(normal(&inner.join(format!("{name}.rs"))));
            out.push(normal(&inner.join(&name).join("mod.rs")));
        }
    }
}

fn path_attribute(module: &syn::ItemMod) -> Option<String> {
    module.attrs.iter().filter(|a| a.path().is_ident("path")).find_map(|a| match &a.meta {
        syn::Meta::NameValue(syn::MetaNameValue {
            value: syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }),
            ..
        }) => Some(path.value()),
        _ => None,
    })
}

/// A path without `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                parts.pop();
            }
            other => parts.push(other.as_os_str().to_string_lossy().into_owned()),
        }
    }
    parts.join("/")
}
