//! The tree of a machine's snapshots: who descends from whom, and what a removal does to it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::SnapshotId;
use crate::{Refusal, RefusalKind};

/// Parents and the current pointer. Children are kept in the order of their identifiers, which is that of their making.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    parents: BTreeMap<SnapshotId, Option<SnapshotId>>,
    current: Option<SnapshotId>,
}

/// One line of a drawn tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Which.
    pub id: SnapshotId,
    /// Its parent.
    pub parent: Option<SnapshotId>,
    /// Roots have 0.
    pub depth: u32,
}

/// What a removal changes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Removal {
    /// What goes, children before their parents.
    pub removed: Vec<SnapshotId>,
    /// Whose parent changes, and to what.
    pub moved: Vec<(SnapshotId, Option<SnapshotId>)>,
    /// Where the current pointer goes, if it pointed at something removed.
    pub current: Option<Option<SnapshotId>>,
}

impl Tree {
    /// A tree of nodes with their parents. A parent that is not among them counts as none.
    pub fn new(nodes: impl IntoIterator<Item = (SnapshotId, Option<SnapshotId>)>, current: Option<SnapshotId>) -> Tree {
        let mut parents: BTreeMap<_, _> = nodes.into_iter().collect();
        let known: BTreeSet<SnapshotId> = parents.keys().copied().collect();
        for parent in parents.values_mut() {
            *parent = parent.filter(|id| known.contains(id));
        }
        let current = current.filter(|id| known.contains(id));
        Tree { parents, current }
    }

    /// What the current state descends from.
    pub fn current(&self) -> Option<SnapshotId> {
        self.current
    }

    /// All nodes, depth first, each after its parent. Takes no stack: trees are thousands deep.
    pub fn nodes(&self) -> Vec<Node> {
        let mut children: BTreeMap<Option<SnapshotId>, Vec<SnapshotId>> = BTreeMap::new();
        for (&id, &parent) in &self.parents {
            children.entry(parent).or_default().push(id);
        }
        let mut out = Vec::with_capacity(self.parents.len());
        let push = |parent: Option<SnapshotId>, depth: u32, pending: &mut Vec<Node>| {
            let of = children.get(&parent).map_or(&[][..], Vec::as_slice);
            pending.extend(of.iter().rev().map(|&id| Node { id, parent, depth }));
        };
        let mut pending = Vec::new();
        push(None, 0, &mut pending);
        while let Some(node) = pending.pop() {
            push(Some(node.id), node.depth + 1, &mut pending);
            out.push(node);
        }
        out
    }

    /// The node and all that descend from it, children before their parents.
    pub fn subtree(&self, root: SnapshotId) -> Result<Vec<SnapshotId>, Refusal> {
        self.known(root)?;
        let nodes = self.nodes();
        let start = nodes.iter().position(|node| node.id == root).unwrap_or(nodes.len());
        let depth = nodes.get(start).map_or(0, |node| node.depth);
        let mut subtree: Vec<SnapshotId> = nodes[start..]
            .iter()
            .enumerate()
            .take_while(|(index, node)| *index == 0 || node.depth > depth)
            .map(|(_, node)| node.id)
            .collect();
        subtree.reverse();
        Ok(subtree)
    }

    /// Removes nodes; children that stay move up to the nearest ancestor that stays, and so does the current pointer.
    pub fn remove(&self, doomed: &[SnapshotId]) -> Result<Removal, Refusal> {
        for &id in doomed {
            self.known(id)?;
        }
        let doomed: BTreeSet<SnapshotId> = doomed.iter().copied().collect();
        let survivor = |mut id: Option<SnapshotId>| {
            while let Some(node) = id.filter(|node| doomed.contains(node)) {
                id = self.parents.get(&node).copied().flatten();
            }
            id
        };
        let moved = self
            .parents
            .iter()
            .filter(|(id, parent)| !doomed.contains(id) && parent.is_some_and(|parent| doomed.contains(&parent)))
            .map(|(&id, &parent)| (id, survivor(parent)))
            .collect();
        let current = self.current.is_some_and(|id| doomed.contains(&id)).then(|| survivor(self.current));
        let removed = self.nodes().into_iter().rev().map(|node| node.id).filter(|id| doomed.contains(id)).collect();
        Ok(Removal { removed, moved, current })
    }

    fn known(&self, id: SnapshotId) -> Result<(), Refusal> {
        if self.parents.contains_key(&id) {
            return Ok(());
        }
        Err(Refusal::new(RefusalKind::Invalid, format!("snapshot {id} is not in this tree")))
    }
}
