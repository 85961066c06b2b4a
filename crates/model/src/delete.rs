//! What deleting snapshots does: who goes, who moves up, where the current pointer goes, which volumes nobody needs then.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::agent::{SnapshotId, VolumeRef};
use crate::tree::Tree;
use crate::{Refusal, Removal, Snapshot};

/// Which snapshots of a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Doomed {
    /// This one; its children move up.
    One(SnapshotId),
    /// This one and all that descend from it.
    Subtree(SnapshotId),
    /// Every one.
    All,
}

/// What a deletion does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeletePlan {
    /// The change of the tree.
    pub removal: Removal,
    /// Volumes of the removed that nothing refers to afterwards, by their names.
    pub unreferenced: Vec<VolumeRef>,
}

/// Those that are asked for, children before their parents.
pub fn doomed(tree: &Tree, which: Doomed) -> Result<Vec<SnapshotId>, Refusal> {
    match which {
        Doomed::One(id) => tree.subtree(id).map(|_| vec![id]),
        Doomed::Subtree(id) => tree.subtree(id),
        Doomed::All => Ok(tree.nodes().into_iter().rev().map(|node| node.id).collect()),
    }
}

/// What deleting these does. `held` says whether anything but them refers to a volume.
pub fn plan(tree: &Tree, doomed: &[Snapshot], held: impl Fn(&VolumeRef) -> bool) -> Result<DeletePlan, Refusal> {
    let ids: Vec<SnapshotId> = doomed.iter().map(|snapshot| snapshot.id).collect();
    let removal = tree.remove(&ids)?;
    let volumes: BTreeSet<VolumeRef> = doomed.iter().flat_map(|snapshot| snapshot.hardware.volumes()).collect();
    Ok(DeletePlan { removal, unreferenced: volumes.into_iter().filter(|volume| !held(volume)).collect() })
}

/// All that stands in the way of deleting these.
pub fn objections(doomed: &[Snapshot]) -> Vec<Refusal> {
    doomed.iter().filter_map(|snapshot| snapshot.deletable().err()).collect()
}

/// The array snapshots that go with them, for each the volumes that stay and so have to be told.
pub fn parts(doomed: &[Snapshot], unreferenced: &[VolumeRef]) -> BTreeMap<SnapshotId, Vec<VolumeRef>> {
    let gone: BTreeSet<&VolumeRef> = unreferenced.iter().collect();
    let staying = |snapshot: &Snapshot| snapshot.hardware.volumes().into_iter().filter(|v| !gone.contains(v)).collect();
    doomed.iter().map(|snapshot| (snapshot.id, staying(snapshot))).collect()
}
