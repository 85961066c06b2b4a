//! A machine's snapshots as a tree, in the manner of `keyframe volume tree`: `○` without memory, `◉` with, and `*` where the
//! machine is now.

use std::io::{self, Write};

use keyframe_manager::request::{TreeNode, TreeView};
use keyframe_model::agent::{Bytes, Timestamp};
use keyframe_model::{Finding, SnapshotState, Tag, Verification};

use super::{moment, or_dash, print, size, word};
use crate::show::tree::{Leaf, graph};

/// Damage, lock, end and tags in one column.
pub(super) fn remarks(
    verification: Option<&Verification>,
    locked: bool,
    expires: Option<Timestamp>,
    tags: &[Tag],
) -> String {
    let mut words: Vec<String> = Vec::new();
    if let Some(Verification { finding: Finding::Damaged { .. }, .. }) = verification {
        words.push("damaged".into());
    }
    if locked {
        words.push("locked".into());
    }
    words.extend(expires.map(|at| format!("until {}", moment(at))));
    words.extend(tags.iter().map(|tag| format!("#{tag}")));
    words.join(" ")
}

/// The nodes with one more: where the machine is now.
fn leaves(view: &TreeView) -> Vec<(Leaf, Option<&TreeNode>)> {
    let now = |depth| (Leaf { depth, label: format!("* {} is here", view.name), main: true }, None);
    let mut leaves = Vec::with_capacity(view.nodes.len() + 1);
    for node in &view.nodes {
        let depth = node.depth as usize;
        let mark = if node.kind.has_memory() { '◉' } else { '○' };
        leaves.push((Leaf { depth, label: format!("{mark} {}", node.name), main: false }, Some(node)));
        if view.current == Some(node.id) {
            leaves.push(now(depth + 1));
        }
    }
    if view.current.is_none() {
        leaves.push(now(0));
    }
    leaves
}

fn kind(node: &TreeNode) -> String {
    match &node.state {
        SnapshotState::Ready => word(node.kind),
        other => format!("{} ({})", word(node.kind), super::snapshot::state(other)),
    }
}

pub(in crate::remote) fn draw(view: &TreeView, out: &mut impl Write) -> io::Result<()> {
    let (leaves, nodes): (Vec<Leaf>, Vec<Option<&TreeNode>>) = leaves(view).into_iter().unzip();
    let with_space = view.nodes.iter().any(|node| node.space.is_some());
    let mut heading = vec!["SNAPSHOT", "KIND", "CONSISTENT", "CREATED (UTC)", "REMARKS"];
    if with_space {
        heading.splice(3..3, ["UNIQUE", "MEMORY", "WOULD FREE"]);
    }
    let row = |(line, index): (String, usize)| {
        let Some(node) = nodes[index] else {
            let mut row = vec![String::new(); heading.len()];
            row[0] = line;
            return row;
        };
        let mut row = vec![
            line,
            kind(node),
            or_dash(node.consistency.map(word)),
            moment(node.created),
            remarks(node.verification.as_ref(), node.locked, node.expires, &node.tags),
        ];
        if with_space {
            let space = node.space.unwrap_or_default();
            row.splice(3..3, [size(space.unique), size(space.memory), size(space.would_free)]);
        }
        row
    };
    print(&heading, graph(&leaves).into_iter().map(row).collect(), out)
}

pub(in crate::remote) fn space(view: &TreeView, out: &mut impl Write) -> io::Result<()> {
    let of = |node: &TreeNode| node.space.unwrap_or_default();
    let mut rows: Vec<Vec<String>> = view
        .nodes
        .iter()
        .map(|node| {
            let space = of(node);
            let sizes = [space.referenced, space.unique, space.shared, space.memory, space.would_free];
            std::iter::once(node.name.to_string()).chain(sizes.map(size)).collect()
        })
        .collect();
    if rows.len() > 1 {
        let memory: Bytes = view.nodes.iter().map(|node| of(node).memory).sum();
        let unique: Bytes = view.nodes.iter().map(|node| of(node).unique).sum();
        let blank = String::new;
        rows.push(vec!["sum".into(), blank(), size(unique), blank(), size(memory), blank()]);
    }
    print(&["SNAPSHOT", "REFERENCED", "UNIQUE", "SHARED", "MEMORY", "WOULD FREE"], rows, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_shows_kinds_tags_locks_and_where_the_machine_is() {
        let id = |n: u8| format!("00000000-0000-7000-8000-0000000000{n:02x}");
        let node = |n: u8, parent: Option<u8>, depth: u32, name: &str, kind: &str, locked: bool| {
            serde_json::json!({
                "id": id(n), "parent": parent.map(id), "depth": depth, "name": name, "generation": 1,
                "state": {"state": "ready"}, "kind": kind, "origin": {"type": "user"}, "consistency": "crash",
                "created": 1_000_000_000_000_000i64, "locked": locked, "tags": if locked { vec!["gold"] } else { vec![] }
            })
        };
        let mut damaged = node(4, Some(2), 2, "other", "disk", false);
        damaged["verification"] = serde_json::json!({ "at": 1, "finding": "damaged", "reason": "a disk is lost" });
        let view = serde_json::json!({
            "vm": id(99), "name": "web", "current": id(3),
            "nodes": [
                node(1, None, 0, "base", "disk", true), node(2, Some(1), 1, "one", "disk+memory", false),
                node(3, Some(2), 2, "two", "disk", false), damaged
            ]
        });
        let mut out = Vec::new();
        draw(&serde_json::from_value(view).unwrap(), &mut out).unwrap();
        let expected = "\
SNAPSHOT              KIND  CONSISTENT        CREATED (UTC)       REMARKS
○ base                disk       crash  2001-09-09 01:46:40  locked #gold
◉ one          disk+memory       crash  2001-09-09 01:46:40
├─○ other             disk       crash  2001-09-09 01:46:40       damaged
○ two                 disk       crash  2001-09-09 01:46:40
* web is here
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
