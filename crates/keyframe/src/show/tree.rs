//! The version tree as a graph, oldest first, in the manner of `git log --graph`: a line of snapshots goes straight down,
//! and what branches off is indented before the line goes on. So a chain of thousands stays readable. The line of the
//! volume that was asked about stays at the left; elsewhere the heaviest child continues its parent's line, so that the
//! width grows with the logarithm of the family.
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
    table::print(&heading, graph(nodes, &view.volume).into_iter().map(row).collect(), out)
}

/// The drawing's lines and the nodes they show.
fn graph(nodes: &[TreeRow], volume: &str) -> Vec<(String, usize)> {
    let (children, weight) = family(nodes, volume);
    let mut lines = Vec::with_capacity(nodes.len());
    // What is still to draw: a node, and what stands before it on its first line and on the lines after.
    let mut waiting: Vec<(usize, String, String)> = Vec::new();
    let roots = nodes.iter().enumerate().rev().filter(|(_, node)| node.depth == 0);
    waiting.extend(roots.map(|(root, _)| (root, String::new(), String::new())));
    while let Some((index, first, rest)) = waiting.pop() {
        let version = &nodes[index].version;
        let mark = match version.kind {
            Kind::Volume => '●',
            Kind::Snapshot => '○',
            Kind::Ghost => '◌',
        };
        lines.push((format!("{first}{mark} {}", version.name), index));
        let heaviest = |child: &usize| (weight[*child], Reverse(*child));
        let Some(main) = children[index].iter().copied().max_by_key(heaviest) else { continue };
        waiting.push((main, rest.clone(), rest.clone()));
        for branch in children[index].iter().rev().copied().filter(|child| *child != main) {
            waiting.push((branch, format!("{rest}├─"), format!("{rest}│ ")));
        }
    }
    lines
}

/// Children and weight of each node: the size of its subtree, and more than everything if `volume` is in it. Nodes are in
/// preorder.
fn family(nodes: &[TreeRow], volume: &str) -> (Vec<Vec<usize>>, Vec<usize>) {
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
    let own = |node: &TreeRow| if node.version.name == volume { nodes.len() } else { 1 };
    let mut weight: Vec<usize> = nodes.iter().map(own).collect();
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
    use crate::ops::VersionView;

    fn node(depth: usize, name: &str) -> TreeRow {
        let kind = match name {
            name if name.contains('@') => Kind::Snapshot,
            name if name.starts_with('(') => Kind::Ghost,
            _ => Kind::Volume,
        };
        let version = VersionView {
            name: name.into(),
            kind,
            size: 0,
            referenced: 0,
            written: 0,
            created: 0,
            parent: None,
            attached: 0,
            snapshots: 0,
            children: 0,
        };
        TreeRow { depth, unique: None, version }
    }

    fn check(nodes: &[(usize, &str)], expected: &[&str]) {
        let nodes: Vec<TreeRow> = nodes.iter().map(|(depth, name)| node(*depth, name)).collect();
        let lines: Vec<String> = graph(&nodes, "web").into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_chain_goes_straight_down() {
        check(&[(0, "web@a"), (1, "web@b"), (2, "web")], &["○ web@a", "○ web@b", "● web"]);
        check(&[(0, "web")], &["● web"]);
        check(&[], &[]);
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
        let nodes: Vec<TreeRow> = (0..100_000).map(|depth| node(depth, "web@x")).collect();
        assert_eq!(graph(&nodes, "web").len(), 100_000);
    }
}
