//! The version tree as a graph, oldest first, in the manner of `git log --graph`: a line of snapshots goes straight down,
//! and what branches off is indented before the line goes on. So a chain of thousands stays readable. The line of the
//! volume that was asked about stays at the left; elsewhere the heaviest child continues its parent's line, so that the
//! width grows with the logarithm of the family. What has no parent is not below anything: all such but the heaviest are set off.
//!
//! ```text
//! ○ web@monday
//! ○ web@tuesday
//! ├─○ lab@start
//! │ ● lab
//! ● web
//! ```

use std::cmp::Reverse;
use std::io::{self, Write};

use super::table;
use crate::clock::utc;
use crate::ops::{Kind, TreeRow, TreeView, human};

pub(super) fn draw(view: &TreeView, out: &mut impl Write) -> io::Result<()> {
    let nodes = &view.nodes;
    let with_space = nodes.iter().any(|node| node.unique.is_some());
    let mut heading = vec!["VERSION", "REFERENCED", "WRITTEN", "CREATED (UTC)"];
    if with_space {
        heading.insert(3, "UNIQUE");
    }
    let row = |(graph, index): (String, usize)| {
        let node = &nodes[index];
        let version = &node.version;
        let mut row = vec![graph, human(version.referenced), human(version.written), utc(version.created)];
        if with_space {
            row.insert(3, node.unique.map_or_else(|| "-".into(), human));
        }
        row
    };
    let leaves: Vec<Leaf> = nodes.iter().map(|node| leaf(node, &view.volume)).collect();
    table::print(&heading, graph(&leaves).into_iter().map(row).collect(), out)
}

fn leaf(node: &TreeRow, volume: &str) -> Leaf {
    let version = &node.version;
    let mark = match version.kind {
        Kind::Volume => '●',
        Kind::Snapshot => '○',
        Kind::Ghost => '◌',
    };
    Leaf { depth: node.depth, label: format!("{mark} {}", version.name), main: version.name == volume }
}

/// A node of any tree that is drawn; nodes are in preorder.
pub(crate) struct Leaf {
    /// Roots have 0.
    pub(crate) depth: usize,
    /// What is drawn.
    pub(crate) label: String,
    /// The line that leads to it stays at the left.
    pub(crate) main: bool,
}

/// The drawing's lines and the nodes they show.
pub(crate) fn graph(nodes: &[Leaf]) -> Vec<(String, usize)> {
    let (children, weight) = family(nodes);
    let mut lines = Vec::with_capacity(nodes.len());
    // What is still to draw: a node, and what stands before it on its first line and on the lines after.
    let mut waiting: Vec<(usize, String, String)> = Vec::new();
    let roots: Vec<usize> = (0..nodes.len()).filter(|root| nodes[*root].depth == 0).collect();
    let main = roots.iter().copied().max_by_key(|root| (weight[*root], Reverse(*root)));
    waiting.extend(roots.into_iter().rev().map(|root| match main == Some(root) {
        true => (root, String::new(), String::new()),
        // Nothing above it is its parent.
        false => (root, "╶─".to_owned(), "  ".to_owned()),
    }));
    while let Some((index, first, rest)) = waiting.pop() {
        lines.push((format!("{first}{}", nodes[index].label), index));
        let heaviest = |child: &usize| (weight[*child], Reverse(*child));
        let Some(main) = children[index].iter().copied().max_by_key(heaviest) else { continue };
        waiting.push((main, rest.clone(), rest.clone()));
        for branch in children[index].iter().rev().copied().filter(|child| *child != main) {
            waiting.push((branch, format!("{rest}├─"), format!("{rest}│ ")));
        }
    }
    lines
}

/// Children and weight of each node: the size of its subtree, and more than everything if the main node is in it.
fn family(nodes: &[Leaf]) -> (Vec<Vec<usize>>, Vec<usize>) {
    let mut children = vec![Vec::new(); nodes.len()];
    let mut parents = vec![None; nodes.len()];
    let mut path: Vec<usize> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        path.truncate(node.depth);
        parents[index] = path.last().copied();
        if let Some(parent) = parents[index] {
            children[parent].push(index);
        }
        path.push(index);
    }
    let mut weight: Vec<usize> = nodes.iter().map(|node| if node.main { nodes.len() } else { 1 }).collect();
    for index in (0..nodes.len()).rev() {
        if let Some(parent) = parents[index] {
            weight[parent] += weight[index];
        }
    }
    (children, weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn node(depth: usize, name: &str) -> Leaf {
        let mark = match name {
            name if name.contains('@') => '○',
            name if name.starts_with('(') => '◌',
            _ => '●',
        };
        Leaf { depth, label: format!("{mark} {name}"), main: name == "web" }
    }

    fn check(nodes: &[(usize, &str)], expected: &[&str]) {
        let nodes: Vec<Leaf> = nodes.iter().map(|(depth, name)| node(*depth, name)).collect();
        let lines: Vec<String> = graph(&nodes).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_chain_goes_straight_down() {
        check(&[(0, "web@a"), (1, "web@b"), (2, "web")], &["○ web@a", "○ web@b", "● web"]);
        check(&[(0, "web")], &["● web"]);
        check(&[], &[]);
    }

    #[test]
    fn what_has_no_parent_is_not_drawn_below_another() {
        check(
            &[(0, "lab@b"), (1, "lab@b2"), (0, "web@c"), (1, "web"), (0, "old@d")],
            &["╶─○ lab@b", "  ○ lab@b2", "○ web@c", "● web", "╶─○ old@d"],
        );
    }

    #[test]
    fn branches_are_indented_before_the_line_goes_on() {
        check(
            &[
                (0, "web@a"),
                (1, "web@b"),
                (2, "web@c"),
                (3, "web"),
                (2, "lab"),
                (1, "(deleted #7)"),
                (2, "test@x"),
                (3, "test"),
                (2, "demo"),
            ],
            &[
                "○ web@a",
                "├─◌ (deleted #7)",
                "│ ├─● demo",
                "│ ○ test@x",
                "│ ● test",
                "○ web@b",
                "├─● lab",
                "○ web@c",
                "● web",
            ],
        );
    }

    #[test]
    fn a_family_of_any_depth_is_drawn() {
        let nodes: Vec<Leaf> = (0..100_000).map(|depth| node(depth, "web@x")).collect();
        assert_eq!(graph(&nodes).len(), 100_000);
    }
}
