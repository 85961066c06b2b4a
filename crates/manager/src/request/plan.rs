//! What a dry run says: exactly what would happen, and what would become free.

use keyframe_model::agent::{Bytes, DiskId, SnapshotId, VolumeRef};
use keyframe_model::{Name, Rest};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What would happen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "plan", rename_all = "kebab-case")]
pub enum PlanView {
    /// On an apply.
    Apply(ApplyPlanView),
    /// On a deletion.
    Delete(DeletePlanView),
}

/// A snapshot by both its names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotName {
    /// Which.
    pub id: SnapshotId,
    /// Its name.
    pub name: Name,
}

/// What an apply would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApplyPlanView {
    /// The snapshot to be applied.
    pub snapshot: SnapshotName,
    /// The name of the automatic snapshot of the state given up; absent if that is discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<Name>,
    /// Blocks that are lost because the state given up is discarded.
    pub loses: Bytes,
    /// The machine runs and its plug is pulled.
    pub stops: bool,
    /// What becomes of each disk.
    pub disks: Vec<DiskChange>,
    /// What becomes of the memory.
    pub memory: MemoryUse,
    /// What the machine does afterwards.
    pub ends: Rest,
    /// Processors and RAM afterwards, where they change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hardware: Vec<String>,
    /// What stands in the way; nothing if the apply would begin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<String>,
}

/// What becomes of a disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskChange {
    /// Which.
    pub id: DiskId,
    /// Its name.
    pub name: Name,
    /// What happens to it.
    pub fate: DiskFate,
}

/// What happens to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFate {
    /// Its content goes to what it was.
    Reverted,
    /// It is not in the machine now, and comes back with what it held.
    ComesBack,
    /// It was not in the machine then: it is taken out, and kept for the snapshots that hold it.
    TakenOut,
    /// It was not in the machine then, and no snapshot holds it: it is deleted.
    Deleted,
}

/// What becomes of a snapshot's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "memory", rename_all = "kebab-case")]
pub enum MemoryUse {
    /// It has none.
    Absent,
    /// The guest goes on where it was.
    Used,
    /// It is left aside, as asked.
    LeftAside,
    /// It cannot be used; the disks can, with `without_memory`.
    Unusable {
        /// Why, for people.
        reason: String,
    },
}

/// What a deletion would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeletePlanView {
    /// What goes, children before their parents.
    pub removed: Vec<SnapshotName>,
    /// Whose parent changes.
    pub moved: Vec<SnapshotName>,
    /// What the machine's current state descends from afterwards, if that changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<SnapshotName>,
    /// Disks that nothing refers to afterwards, which go as well.
    pub volumes: Vec<VolumeRef>,
    /// What becomes free, memory included.
    pub would_free: Bytes,
    /// Of that, memory.
    pub memory: Bytes,
    /// What stands in the way; nothing if the deletion would begin.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<String>,
}
