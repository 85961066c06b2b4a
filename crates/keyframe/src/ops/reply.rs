//! What comes back. The shapes are the `--json` output, so a field that is added stays, and none changes its meaning.

use keyframe_engine::units::Bytes;
use keyframe_transfer::Copied;
use serde::{Deserialize, Serialize};

/// The result of a request. As JSON an object whose `type` is the name in kebab case.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum Reply {
    Pool(PoolView),
    Stats(PoolStats),
    Size(SizeView),
    Version(VersionView),
    Versions(VersionsView),
    Snapshots(SnapshotsView),
    Deleted(DeletedView),
    Tree(TreeView),
    Space(SpacesView),
    Diff(DiffTotals),
    Check(CheckView),
    Copy(Copied),
}

/// Something said before the result.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Event {
    /// How far a long request is. The unit depends on the request: bytes for copies, blocks for verification.
    Progress { done: u64, total: u64 },
    /// A part of a difference, in order.
    Ranges(Vec<Range>),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PoolView {
    pub(crate) path: String,
    pub(crate) uuid: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) size: u64,
    pub(crate) used: u64,
    /// What guests may still fill.
    pub(crate) free: u64,
    /// Kept back for deleting and checkpoints.
    pub(crate) reserve: u64,
    /// Freed by deletions, not yet reusable.
    pub(crate) pending: u64,
    pub(crate) volumes: u64,
    pub(crate) snapshots: u64,
    /// Deleted branch points that still anchor shared blocks.
    pub(crate) ghosts: u64,
    /// Why the pool takes no more changes, if so.
    pub(crate) stopped: Option<String>,
    /// The copy of the superblock that was found damaged, 1 or 2.
    pub(crate) damaged_superblock: Option<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SizeView {
    pub(crate) size: u64,
}

/// What a node of the version tree is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Volume,
    Snapshot,
    /// Deleted, but other nodes branch off from it.
    Ghost,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct VersionView {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// Bytes that it maps.
    pub(crate) referenced: u64,
    /// Bytes written since its parent.
    pub(crate) written: u64,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) parent: Option<String>,
    /// Clients that use it now.
    pub(crate) attached: u32,
    pub(crate) snapshots: u32,
    pub(crate) children: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct VersionsView {
    pub(crate) items: Vec<VersionView>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotsView {
    pub(crate) snapshots: Vec<String>,
    /// Microseconds during which writes waited.
    pub(crate) held_us: u64,
    /// Microseconds until all of them were durable.
    pub(crate) total_us: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct DeletedView {
    pub(crate) deleted: Vec<String>,
    /// What that frees; only a dry run computes it.
    pub(crate) would_free: Option<u64>,
    pub(crate) dry_run: bool,
}

/// A family in preorder; a flat list, because a chain of snapshots may be 100,000 deep.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct TreeView {
    /// The volume that was asked about.
    pub(crate) volume: String,
    pub(crate) nodes: Vec<TreeRow>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct TreeRow {
    /// 0 for roots; a node's parent is the nearest earlier node whose depth is smaller by one.
    pub(crate) depth: usize,
    /// Bytes that only this node holds, if asked for; ghosts hold nothing of their own.
    pub(crate) unique: Option<u64>,
    #[serde(flatten)]
    pub(crate) version: VersionView,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SpacesView {
    pub(crate) targets: Vec<SpaceView>,
    /// What deleting all of them together frees.
    pub(crate) would_free: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SpaceView {
    pub(crate) name: String,
    pub(crate) referenced: u64,
    pub(crate) unique: u64,
    pub(crate) shared: u64,
    pub(crate) would_free: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) kind: RangeKind,
}

/// What a range became.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RangeKind {
    Data,
    Zero,
    Hole,
}

impl RangeKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            RangeKind::Data => "data",
            RangeKind::Zero => "zero",
            RangeKind::Hole => "hole",
        }
    }
}

/// Sums over a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DiffTotals {
    pub(crate) ranges: u64,
    pub(crate) data: u64,
    pub(crate) zero: u64,
    pub(crate) hole: u64,
}

impl DiffTotals {
    pub(crate) fn add(&mut self, range: &Range) {
        self.ranges += 1;
        match range.kind {
            RangeKind::Data => self.data += range.length,
            RangeKind::Zero => self.zero += range.length,
            RangeKind::Hole => self.hole += range.length,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct CheckView {
    pub(crate) clean: bool,
    pub(crate) data_blocks: u64,
    pub(crate) metadata_pages: u64,
    pub(crate) versions: u64,
    pub(crate) errors: Vec<String>,
    /// Errors beyond the ones listed.
    pub(crate) more_errors: u64,
}

/// The pool's counters, and the server's where there is one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PoolStats {
    pub(crate) used: u64,
    pub(crate) free: u64,
    pub(crate) pending: u64,
    /// Deleted versions that are not all reclaimed yet.
    pub(crate) ghosts: u64,
    pub(crate) checkpoints: u64,
    pub(crate) journal_percent: u64,
    pub(crate) cached_pages: u64,
    pub(crate) dirty_pages: u64,
    pub(crate) server: Option<ServerStats>,
}

/// What a server knows beyond its pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ServerStats {
    pub(crate) version: String,
    pub(crate) uptime_seconds: u64,
    pub(crate) nbd: Vec<String>,
    pub(crate) nbd_connections: u64,
}

/// Sizes as people read them.
pub(crate) fn human(bytes: u64) -> String {
    Bytes(bytes).to_string()
}
