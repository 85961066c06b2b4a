//! No dead files, no stray white space, no crate without the workspace's lints, and a log of changes.

use std::collections::BTreeSet;

use keyframe_tidy::{Kind, Offences, Tree, modules};

/// Files that cargo compiles on its own.
fn is_root(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    matches!(
        parts[..],
        [.., "src", "lib.rs" | "main.rs"]
            | [.., "build.rs"]
            | [.., "src", "bin", _]
            | [.., "tests" | "examples" | "benches" | "fuzz_targets", _]
            | [.., "tests", _, "main.rs"]
    )
}

#[test]
fn every_source_file_is_compiled() {
    let tree = Tree::read();
    let all: BTreeSet<&str> = tree.files(&[Kind::Rust]).collect();
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut todo: Vec<String> = all.iter().filter(|path| is_root(path)).map(|path| (*path).to_owned()).collect();
    while let Some(path) = todo.pop() {
        if all.contains(path.as_str()) && reached.insert(path.clone()) {
            todo.extend(modules(&path, &tree.text(&path)));
        }
    }
    let mut offences = Offences::default();
    for path in all.iter().filter(|path| !reached.contains(**path)) {
        offences.add(path, "no `mod` declaration leads here, so nobody compiles it; declare it or delete it");
    }
    offences.none();
}

#[test]
fn lines_end_where_their_text_ends() {
    let tree = Tree::read();
    let mut offences = Offences::default();
    for path in tree.files(&[Kind::Rust, Kind::Script, Kind::Prose, Kind::Config]) {
        let text = tree.text(path);
        for (i, line) in text.lines().enumerate() {
            if line.ends_with([' ', '\t', '\r']) {
                offences.add(format!("{path}:{}", i + 1), "white space at the end of the line; delete it");
            }
        }
        if !text.is_empty() && !text.ends_with('\n') {
            offences.add(path, "the last line has no end; add one");
        }
    }
    offences.none();
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let tree = Tree::read();
    let mut offences = Offences::default();
    for path in tree.manifests() {
        let text = tree.text(path);
        let section: Vec<&str> = text
            .lines()
            .skip_while(|line| line.trim() != "[lints]")
            .skip(1)
            .take_while(|l| !l.starts_with('['))
            .collect();
        if !section.iter().any(|line| line.replace(' ', "") == "workspace=true") {
            offences.add(path, "has no `[lints]` with `workspace = true`; add it");
        }
    }
    offences.none();
}

#[test]
fn the_log_of_changes_knows_this_version() {
    let tree = Tree::read();
    let manifest = tree.text("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("version = ")).unwrap_or("").trim_matches('"');
    let log = tree.text("CHANGELOG.md");
    let headings: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("## [")).collect();
    let mut offences = Offences::default();
    let known = headings.iter().any(|h| h.starts_with("Unreleased") || h.split(']').next() == Some(version));
    if version.is_empty() || !known {
        offences.add("CHANGELOG.md", format!("has no `## [Unreleased]` and no `## [{version}]`; add what changed"));
    }
    offences.none();
}
