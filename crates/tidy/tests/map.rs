//! `ARCHITECTURE.md` is the map: crates depend on each other as it says, and what it names exists.

use std::collections::BTreeSet;

use keyframe_tidy::{Kind, Offences, Tree};

const MAP: &str = "ARCHITECTURE.md";

/// The lines of a fenced block of the map.
fn block(tree: &Tree, name: &str) -> Vec<String> {
    let text = tree.text(MAP);
    let start = format!("```{name}");
    let lines: Vec<String> =
        text.lines().skip_while(|l| *l != start).skip(1).take_while(|l| *l != "```").map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{MAP}: has no block ```{name}; the rules need it");
    lines
}

/// (from, to) of each line `FROM SIGN TO TO …`.
fn pairs(lines: &[String], sign: &str) -> BTreeSet<(String, String)> {
    let mut out = BTreeSet::new();
    for line in lines {
        let Some((from, to)) = line.split_once(sign) else { panic!("{MAP}: not `CRATE {sign} CRATE …`: {line}") };
        out.extend(to.split_whitespace().map(|to| (from.trim().to_owned(), to.to_owned())));
    }
    out
}

/// The package's name and what it depends on; of its tests only what the test asks for.
fn dependencies(text: &str, with_tests: bool) -> (String, BTreeSet<String>) {
    let (mut section, mut name, mut out) = (String::new(), String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(title) = line.strip_prefix('[') {
            section = title.trim_end_matches(']').to_owned();
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let key = key.trim().split('.').next().unwrap_or("").trim_matches('"');
        if section == "package" && key == "name" {
            name = value.trim().trim_matches('"').to_owned();
        }
        let ours = section == "dependencies" || section.ends_with(".dependencies") || section == "build-dependencies";
        if ours || (with_tests && section.ends_with("dev-dependencies")) {
            out.insert(key.to_owned());
        }
    }
    (name, out)
}

#[test]
fn crates_depend_on_each_other_as_the_map_says() {
    let tree = Tree::read();
    let allowed = pairs(&block(&tree, "arrows"), "->");
    let (mut found, mut names, mut offences) = (BTreeSet::new(), BTreeSet::new(), Offences::default());
    for path in tree.manifests() {
        let (name, dependencies) = dependencies(&tree.text(path), true);
        names.insert(name.clone());
        for to in dependencies.into_iter().filter(|d| d == "keyframe" || d.starts_with("keyframe-")) {
            let arrow = (name.clone(), to.clone());
            if !allowed.contains(&arrow) {
                let why = "is not on the map; call it some other way, or change the map and say why in docs/design/";
                offences.add(path, format!("the arrow {name} -> {to} {why}"));
            }
            found.insert(arrow);
        }
    }
    for (from, to) in allowed.difference(&found).filter(|(_, to)| to != "nothing") {
        offences.add(MAP, format!("the arrow {from} -> {to} is on the map but in no manifest; take it off"));
    }
    let drawn: BTreeSet<String> = allowed.iter().map(|(from, _)| from.clone()).collect();
    for name in names.difference(&drawn) {
        offences.add(MAP, format!("crate {name} is missing among the arrows; `{name} -> nothing` is a line too"));
    }
    offences.none();
}

#[test]
fn crates_lack_what_the_map_says_they_lack() {
    let tree = Tree::read();
    let refused = pairs(&block(&tree, "absences"), "without");
    let mut offences = Offences::default();
    for path in tree.manifests() {
        let (name, dependencies) = dependencies(&tree.text(path), false);
        for (_, dependency) in refused.iter().filter(|(from, to)| *from == name && dependencies.contains(to)) {
            offences.add(path, format!("{name} depends on {dependency}, which {MAP} says it must not"));
        }
    }
    offences.none();
}

/// Words in back quotes that look like paths of this repository.
fn paths(text: &str) -> impl Iterator<Item = (usize, String)> + '_ {
    const TOPS: [&str; 7] = ["crates/", "docs/", "scripts/", "guest/", "fuzz/", ".ci/", "bench/"];
    text.lines().enumerate().flat_map(|(i, line)| {
        line.split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| TOPS.iter().any(|top| word.starts_with(top)) && !word.contains(['*', ' ', '…', '<']))
            .map(move |word| (i + 1, word.to_owned()))
            .collect::<Vec<_>>()
    })
}

#[test]
fn files_that_the_documents_name_exist() {
    let tree = Tree::read();
    let mut offences = Offences::default();
    for document in tree.files(&[Kind::Prose]) {
        for (line, path) in paths(&tree.text(document)) {
            if !tree.has(&path) {
                offences.add(format!("{document}:{line}"), format!("`{path}` does not exist; correct the page"));
            }
        }
    }
    offences.none();
}
