//! Snapshots: wishes and views.

use keyframe_model::agent::{Bytes, Generation, Micros, Quiesce, SnapshotId, Timestamp, VmId};
use keyframe_model::{Consistency, Name, Snapshot, SnapshotKind, SnapshotOrigin, SnapshotState, Tag, Verification};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A snapshot to be taken.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// Unique within the machine; `snapshot-1`, `snapshot-2`, … when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// For people and policies.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// With memory or without; without when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SnapshotKind>,
    /// Whether the guest's file systems are to be made clean first.
    #[serde(default)]
    pub quiesce: Quiesce,
    /// How long the guest agent may take, and the longest that writes may be held; 10 ms to 60 s, 5 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Micros>,
    /// Nobody can delete it until it is unlocked.
    #[serde(default)]
    pub locked: bool,
}

/// Changes what is said about a snapshot. What is absent stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotUpdate {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// A new description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// All tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<Tag>>,
    /// Lock or unlock it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked: Option<bool>,
    /// Keep an automatic one for good: it no longer expires.
    #[serde(default)]
    pub keep: bool,
}

/// Takes the machine to a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Apply {
    /// Do not keep the state given up, neither disks nor memory.
    #[serde(default)]
    pub discard_current: bool,
    /// The name of the automatic snapshot of the state given up; `before-NAME-1`, … when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_name: Option<Name>,
    /// Keep the memory given up too, if the machine runs or is paused; true when absent. Without it the apply is quicker, but
    /// going back cuts the guest off, and so does an apply that fails after the guest was stopped.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub keep_memory: bool,
    /// How long the automatic snapshot is kept; 7 days when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for: Option<Micros>,
    /// Start the machine afterwards, if the snapshot has no memory or it is not used.
    #[serde(default)]
    pub start: bool,
    /// Use the disks only.
    #[serde(default)]
    pub without_memory: bool,
    /// Change nothing, say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

fn yes() -> bool {
    true
}

impl Default for Apply {
    fn default() -> Apply {
        Apply {
            discard_current: false,
            keep_name: None,
            keep_memory: yes(),
            keep_for: None,
            start: false,
            without_memory: false,
            dry_run: false,
        }
    }
}

/// Deletes a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDelete {
    /// And all that descend from it; otherwise its children move up.
    #[serde(default)]
    pub subtree: bool,
    /// Change nothing, say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// Which snapshots.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SnapshotFilter {
    /// Of this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// Of this name exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// With this word in name, description or tags, upper or lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    /// With this tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Of this kind; a plus sign in an address is written `%2B`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SnapshotKind>,
    /// `creating`, `ready`, `deleting` or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Made by Keyframe itself, as one that keeps a state given up; or, if false, asked for by somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub automatic: Option<bool>,
    /// Say what each takes; takes longer.
    #[serde(default)]
    pub space: bool,
}

/// A snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// How consistent it is; absent until it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// The machine's current state descends from it.
    pub current: bool,
    /// What it takes, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<SnapshotSpace>,
}

/// What a snapshot takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SnapshotSpace {
    /// Blocks of all its disks.
    pub referenced: Bytes,
    /// Of these, blocks that nothing else refers to.
    pub unique: Bytes,
    /// Of `referenced`, blocks that something else refers to as well.
    pub shared: Bytes,
    /// Its stored memory.
    pub memory: Bytes,
    /// What would become free if it alone were deleted: unique blocks and memory.
    pub would_free: Bytes,
}

/// A machine's snapshots as a tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TreeView {
    /// The machine.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// What its current state descends from; no snapshot when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<SnapshotId>,
    /// Depth first, each after its parent.
    pub nodes: Vec<TreeNode>,
}

/// One line of the tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TreeNode {
    /// Which.
    pub id: SnapshotId,
    /// Its parent.
    pub parent: Option<SnapshotId>,
    /// Roots have 0.
    pub depth: u32,
    /// Its name.
    pub name: Name,
    /// Raised with every change.
    pub generation: Generation,
    /// What is being done to it.
    pub state: SnapshotState,
    /// With memory or without.
    pub kind: SnapshotKind,
    /// Why it was made.
    pub origin: SnapshotOrigin,
    /// How consistent it is; absent until it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// When it was ordered.
    pub created: Timestamp,
    /// When it goes by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// It cannot be deleted.
    pub locked: bool,
    /// For people and policies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// What was found when it was verified last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
    /// What it takes, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<SnapshotSpace>,
}
