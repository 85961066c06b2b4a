//! What a dry run says: exactly what would happen, and what would become free.

use keyframe_model::agent::{Bytes, DiskId, SnapshotId, Timestamp, VolumeRef};
use keyframe_model::apply::{DiskFate, MemoryUse};
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
    /// The memory of the running or paused guest is kept with it.
    pub keeps_memory: bool,
    /// When the automatic snapshot goes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps_until: Option<Timestamp>,
    /// What is lost of the state given up: blocks if it is discarded, and memory.
    pub loses: Bytes,
    /// Of that, the memory of the running or paused guest.
    pub loses_memory: Bytes,
    /// The machine runs and its plug is pulled.
    pub stops: bool,
    /// What becomes of each disk.
    pub disks: Vec<DiskChange>,
    /// What becomes of the memory.
    pub memory: MemoryUse,
    /// What the machine does afterwards.
    pub ends: Rest,
    /// Processors, RAM, sizes of disks and more afterwards, where they change.
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

/// What a deletion would do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeletePlanView {
    /// The machine runs or is paused and its plug is pulled: its memory, so much of it, is lost.
    #[serde(default)]
    pub loses_memory: Bytes,
    /// What goes, children before their parents.
    pub removed: Vec<SnapshotName>,
    /// Whose parent changes.
    pub moved: Vec<SnapshotName>,
    /// The machine's current state descends from something else afterwards, or from nothing.
    #[serde(default)]
    pub current_changes: bool,
    /// What it descends from then; absent if that does not change, or is nothing.
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
