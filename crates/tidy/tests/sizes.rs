//! Files stay below 600 lines and functions below 70. What is larger already is on a list that may only shrink.

use std::collections::BTreeMap;

use keyframe_tidy::{Kind, Offences, Tree, functions};

const RATCHET: &str = "crates/tidy/ratchet.txt";
const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 70;

type Limits = BTreeMap<String, usize>;

fn ratchet(tree: &Tree) -> (Limits, Limits) {
    let (mut files, mut functions) = (Limits::new(), Limits::new());
    for (i, line) in tree.text(RATCHET).lines().enumerate() {
        let bad =
            || -> usize { panic!("{RATCHET}:{}: not `file PATH LINES` or `function PATH NAME LINES`: {line}", i + 1) };
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] | ["#", ..] => {}
            ["file", path, lines] => {
                files.insert(path.to_owned(), lines.parse().unwrap_or_else(|_| bad()));
            }
            ["function", path, name, lines] => {
                functions.insert(format!("{path} {name}"), lines.parse().unwrap_or_else(|_| bad()));
            }
            _ => {
                bad();
            }
        }
    }
    (files, functions)
}

/// Holds one measured size to the limit or to the list, and takes it off the list.
fn hold(at: &str, key: &str, lines: usize, limit: usize, allowed: &mut Limits, advice: &str, offences: &mut Offences) {
    match allowed.remove(key) {
        Some(most) if lines > most => {
            offences.add(at, format!("has {lines} lines, the ratchet allows {most}; {advice}"));
        }
        Some(most) if lines < most => {
            let now = if lines > limit { format!("set it to {lines}") } else { "take the line out".to_owned() };
            offences.add(at, format!("shrank from {most} to {lines} lines, well done; in {RATCHET}, {now}"));
        }
        None if lines > limit => offences.add(at, format!("has {lines} lines, the limit is {limit}; {advice}")),
        _ => {}
    }
}

#[test]
fn files_and_functions_are_small() {
    let tree = Tree::read();
    let (mut files, mut small) = ratchet(&tree);
    let mut offences = Offences::default();
    for path in tree.files(&[Kind::Rust, Kind::Script]) {
        let text = tree.text(path);
        let advice = "split it by decisions, one file each";
        hold(path, path, text.lines().count(), FILE_LINES, &mut files, advice, &mut offences);
        if !path.ends_with(".rs") {
            continue;
        }
        for function in functions(path, &text) {
            let (at, key) = (format!("{path}:{}", function.line), format!("{path} {}", function.name));
            let advice = format!("name the steps of {} and make them functions", function.name);
            hold(&at, &key, function.lines, FUNCTION_LINES, &mut small, &advice, &mut offences);
        }
    }
    for gone in files.keys().chain(small.keys()) {
        offences.add(RATCHET, format!("{gone} is listed but not there any more; take the line out"));
    }
    offences.none();
}
