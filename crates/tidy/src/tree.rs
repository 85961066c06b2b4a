//! The repository's files, without what is built, ignored, or made by version control.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold no source, wherever they are.
const SKIPPED: [&str; 6] = ["target", ".git", ".keyframe", "corpus", "artifacts", "coverage"];
/// Where measurements put their files.
const SKIPPED_PATHS: [&str; 1] = ["bench/work"];

/// What a file is written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A `.rs` file.
    Rust,
    /// Shell, C and what runs without a suffix.
    Script,
    /// Markdown and plain text.
    Prose,
    /// Manifests and other settings.
    Config,
}

/// All files of the repository, as paths relative to its root.
pub struct Tree {
    root: PathBuf,
    files: Vec<(String, Kind)>,
}

impl Tree {
    /// Reads the repository that this crate lies in.
    ///
    /// # Panics
    /// If a folder cannot be read.
    pub fn read() -> Tree {
        // Asked when it runs: several checkouts may share one folder of build results.
        let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&here).join("../..");
        let root = root.canonicalize().unwrap_or(root);
        let mut files = Vec::new();
        collect(&root, &root, &mut files);
        files.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(files.len() > 50, "{} is not the repository: it has {} files", root.display(), files.len());
        Tree { root, files }
    }

    /// Paths of the files of some kinds.
    pub fn files<'a>(&'a self, kinds: &'a [Kind]) -> impl Iterator<Item = &'a str> {
        self.files.iter().filter(|(_, kind)| kinds.contains(kind)).map(|(path, _)| path.as_str())
    }

    /// Whether a file or folder of this path exists.
    pub fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// A file's text.
    ///
    /// # Panics
    /// If it cannot be read: a rule that cannot look must not pass.
    pub fn text(&self, path: &str) -> String {
        match fs::read(self.root.join(path)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) => panic!("{path}: cannot be read ({e}); the house rules need it"),
        }
    }

    /// The manifests of the workspace's crates.
    pub fn manifests(&self) -> impl Iterator<Item = &str> {
        self.files(&[Kind::Config]).filter(|p| p.starts_with("crates/") && p.ends_with("/Cargo.toml"))
    }
}

fn collect(root: &Path, folder: &Path, out: &mut Vec<(String, Kind)>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) => panic!("{}: cannot be listed ({e})", folder.display()),
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if SKIPPED.contains(&name.as_str()) || SKIPPED_PATHS.contains(&relative.as_str()) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(root, &path, out),
            Ok(kind) if kind.is_file() => out.extend(kind_of(&name).map(|kind| (relative, kind))),
            _ => {}
        }
    }
}

fn kind_of(name: &str) -> Option<Kind> {
    match name.rsplit_once('.') {
        Some((_, "rs")) => Some(Kind::Rust),
        Some((_, "sh" | "c" | "py")) => Some(Kind::Script),
        Some((_, "md" | "txt")) => Some(Kind::Prose),
        Some((_, "toml" | "json" | "yml" | "yaml")) => Some(Kind::Config),
        Some(_) => None,
        None if name == "LICENSE" => Some(Kind::Prose),
        None => Some(Kind::Script),
    }
}
