//! Nothing half-done, no lint switched off without a reason, and no path of the machine it was written on.
//!
//! The patterns are put together from parts, so that this file does not match itself.

use keyframe_tidy::{Kind, Offences, Tree};

const ALL: [Kind; 4] = [Kind::Rust, Kind::Script, Kind::Prose, Kind::Config];

/// Reports each line that contains `pattern` as a word or path of its own.
fn refuse(tree: &Tree, kinds: &[Kind], pattern: &str, why: &str, offences: &mut Offences) {
    for path in tree.files(kinds) {
        for (i, line) in tree.text(path).lines().enumerate() {
            if contains_apart(line, pattern) {
                offences.add(format!("{path}:{}", i + 1), format!("`{pattern}`: {why}"));
            }
        }
    }
}

/// Whether `pattern` occurs and is not a part of a longer word or path.
fn contains_apart(line: &str, pattern: &str) -> bool {
    let joins = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '~' | '}' | ')');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(pattern).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + pattern.len()..].chars().next();
        !(before.is_some_and(joins) || pattern.ends_with(word) && after.is_some_and(word))
    })
}

#[test]
fn nothing_is_left_half_done() {
    let tree = Tree::read();
    let mut offences = Offences::default();
    for word in [["FIX", "ME"], ["X", "XX"], ["TO", "DO"], ["HA", "CK"]] {
        let why = "do it, or say in the design notes why not";
        refuse(&tree, &[Kind::Rust, Kind::Script, Kind::Config], &word.concat(), why, &mut offences);
    }
    for word in [["to", "do!"], ["db", "g!"], ["unimple", "mented!"]] {
        refuse(&tree, &[Kind::Rust], &word.concat(), "must not be committed", &mut offences);
    }
    offences.none();
}

#[test]
fn lints_are_expected_not_allowed() {
    let tree = Tree::read();
    let mut offences = Offences::default();
    for start in ["#[", "#!["] {
        let pattern = format!("{start}{}", "allow(");
        let why = "write `expect(…, reason = \"…\")`: it says why, and when it is no longer needed";
        refuse(&tree, &[Kind::Rust], &pattern, why, &mut offences);
    }
    offences.none();
}

#[test]
fn no_path_of_a_machine_is_in_the_tree() {
    let tree = Tree::read();
    let mut offences = Offences::default();
    for path in [["/wo", "rk/"], ["/fa", "rm/"], ["/tmp/", "bash_jobs"], ["/home/", "user/"], ["/root/", ".cargo"]] {
        let why = "means something on one machine only; use a relative path or a temporary folder";
        refuse(&tree, &ALL, &path.concat(), why, &mut offences);
    }
    offences.none();
}

#[test]
fn a_pattern_is_found_only_as_a_word_of_its_own() {
    let check = |line: &str, pattern: &str, found: bool| assert_eq!(contains_apart(line, pattern), found, "{line}");
    check("cd /place/x", "/place/", true);
    check("cd bench/place/x", "/place/", false);
    check("\"/place/x\"", "/place/", true);
    check("mktemp work.QQQQQQ", "QQQ", false);
    check("// QQQ: later", "QQQ", true);
    check("QQQ", "QQQ", true);
}
