//! Trees of snapshots: what a removal does, held against an oracle that is too simple to be wrong.

use std::collections::BTreeMap;

use crate::common::snapshot_id;
use keyframe_model::Tree;
use keyframe_model::agent::SnapshotId;
use keyframe_model::delete::{Doomed, doomed};
use proptest::prelude::*;

/// A tree: for each node by its number, its parent.
fn tree(parents: &[Option<usize>], current: Option<usize>) -> Tree {
    let id = |number: usize| snapshot_id(number as u128);
    Tree::new(parents.iter().enumerate().map(|(n, parent)| (id(n), parent.map(id))), current.map(id))
}

fn ids(numbers: &[usize]) -> Vec<SnapshotId> {
    numbers.iter().map(|&number| snapshot_id(number as u128)).collect()
}

/// 0 ─ 1 ─ 2 ─ 3, and 1 ─ 4 ─ 5.
const FORK: [Option<usize>; 6] = [None, Some(0), Some(1), Some(2), Some(1), Some(4)];

#[test]
fn one_in_the_middle_goes_and_its_children_move_up() {
    let removal = tree(&FORK, Some(1)).remove(&ids(&[1])).unwrap();
    assert_eq!(removal.removed, ids(&[1]));
    let zero = Some(snapshot_id(0));
    assert_eq!(removal.moved, vec![(snapshot_id(2), zero), (snapshot_id(4), zero)]);
    assert_eq!(removal.current, Some(zero));
}

#[test]
fn a_root_goes_and_leaves_two_roots() {
    let removal = tree(&FORK, Some(3)).remove(&ids(&[0, 1])).unwrap();
    assert_eq!(removal.moved, vec![(snapshot_id(2), None), (snapshot_id(4), None)]);
    assert_eq!(removal.current, None, "3 stays, so the pointer does");
}

#[test]
fn a_subtree_goes_with_all_of_it() {
    let tree = tree(&FORK, Some(5));
    let subtree = doomed(&tree, Doomed::Subtree(snapshot_id(1))).unwrap();
    assert_eq!(subtree.last(), Some(&snapshot_id(1)), "children go before their parents");
    let mut sorted = subtree.clone();
    sorted.sort();
    assert_eq!(sorted, ids(&[1, 2, 3, 4, 5]));
    let removal = tree.remove(&subtree).unwrap();
    assert_eq!((removal.moved, removal.current), (Vec::new(), Some(Some(snapshot_id(0)))));
    assert_eq!(doomed(&tree, Doomed::All).unwrap().len(), 6);
    assert_eq!(doomed(&tree, Doomed::One(snapshot_id(2))).unwrap(), ids(&[2]));
}

#[test]
fn what_is_not_there_is_refused() {
    let tree = tree(&FORK, None);
    let says = "snapshot 00000000-0000-0000-0000-000000005009 is not in this tree";
    assert_eq!(tree.remove(&ids(&[9])).unwrap_err().message, says);
    assert_eq!(doomed(&tree, Doomed::One(snapshot_id(9))).unwrap_err().message, says);
}

#[test]
fn ten_thousand_deep_takes_no_stack_and_no_time() {
    const DEEP: usize = 10_000;
    let parents: Vec<Option<usize>> = (0..DEEP).map(|n| n.checked_sub(1)).collect();
    let tree = tree(&parents, Some(DEEP - 1));
    let nodes = tree.nodes();
    assert_eq!(nodes.len(), DEEP);
    assert_eq!(nodes.last().unwrap().depth, u32::try_from(DEEP).unwrap() - 1);
    assert_eq!(tree.subtree(snapshot_id(1)).unwrap().len(), DEEP - 1);
    let odd: Vec<usize> = (0..DEEP).filter(|n| n % 2 == 1).collect();
    let removal = tree.remove(&ids(&odd)).unwrap();
    assert_eq!((removal.removed.len(), removal.moved.len()), (DEEP / 2, DEEP / 2 - 1));
    assert_eq!(removal.current, Some(Some(snapshot_id(DEEP as u128 - 2))));
}

/// Removes one node after another, each time telling its children who their parent is now.
fn oracle(
    parents: &[Option<usize>],
    current: Option<usize>,
    doomed: &[usize],
) -> (BTreeMap<usize, Option<usize>>, Option<usize>) {
    let mut left: BTreeMap<usize, Option<usize>> = parents.iter().copied().enumerate().collect();
    let mut current = current;
    for &gone in doomed {
        let Some(parent) = left.remove(&gone) else { continue };
        for of in left.values_mut().filter(|of| **of == Some(gone)) {
            *of = parent;
        }
        if current == Some(gone) {
            current = parent;
        }
    }
    (left, current)
}

proptest! {
    #[test]
    fn a_removal_is_what_removing_one_by_one_comes_to(
        seeds in prop::collection::vec(0u32..1000, 1..60),
        picks in prop::collection::vec(0usize..60, 0..60),
        at in 0usize..60,
    ) {
        let parents: Vec<Option<usize>> = seeds
            .iter()
            .enumerate()
            // Any earlier node, or none: parents are older than their children.
            .map(|(n, &seed)| (seed as usize % (n + 1)).checked_sub(1))
            .collect();
        let doomed: Vec<usize> = picks.into_iter().filter(|&pick| pick < parents.len()).collect();
        let current = (at < parents.len()).then_some(at);
        let removal = tree(&parents, current).remove(&ids(&doomed)).unwrap();
        let (left, expected) = oracle(&parents, current, &doomed);

        let mut found: BTreeMap<SnapshotId, Option<SnapshotId>> =
            tree(&parents, current).nodes().into_iter().map(|node| (node.id, node.parent)).collect();
        for id in &removal.removed {
            prop_assert!(found.remove(id).is_some(), "removed once");
        }
        found.extend(removal.moved.iter().copied());
        let id = |number: usize| snapshot_id(number as u128);
        let left: BTreeMap<SnapshotId, Option<SnapshotId>> =
            left.into_iter().map(|(n, parent)| (id(n), parent.map(id))).collect();
        prop_assert_eq!(found, left);
        let current = removal.current.unwrap_or(current.map(id));
        prop_assert_eq!(current, expected.map(id));
    }
}
