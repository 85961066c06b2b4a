//! Arrays: the seam to whatever makes volumes, snapshots and clones natively.
//!
//! A driver does what it is told, once: it knows no machine, no tree and no job. Volumes are named by the caller, and so
//! are snapshots, which makes every call repeatable: what is there already in the wished shape is a success.

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod engine;
pub mod fake;
mod name;
mod set;

use std::sync::Arc;

use keyframe_agent_api::{
    ArrayInfo, Bytes, ChangedExtent, CreateVolume, ResizeVolume, SnapshotId, SpaceUse, VolumeInfo, WorkProgress,
};

use crate::Result;
use crate::exports::Blocks;

pub use engine::{Engine, EngineOptions};
pub use name::check_name;
pub use set::{Arrays, OnArray};

/// What makes volumes. Calls wait for I/O; any number of threads may call at once. Names were checked by the caller with
/// [`check_name`].
pub trait Array: Send + Sync {
    /// What it is and can do, and how full it is.
    fn info(&self) -> Result<ArrayInfo>;

    /// Makes a volume with its first content. One of that name with that size and source is a success; a different one is
    /// [`Exists`](keyframe_agent_api::FaultKind::Exists), as far as the array still knows. A failed or killed import leaves
    /// nothing, or what a repeated call completes.
    fn create(&self, volume: &str, wish: &CreateVolume) -> Result<VolumeInfo>;

    /// Ends the filling of a volume from an image, whose call fails as a [`Conflict`](keyframe_agent_api::FaultKind::Conflict).
    /// Nothing to do while it is not being filled.
    fn cancel(&self, volume: &str);

    /// How far that filling is.
    fn progress(&self, volume: &str) -> WorkProgress;

    /// One volume.
    fn volume(&self, volume: &str) -> Result<VolumeInfo>;

    /// A page of volumes in an order of the array's own, after the one named; that one must be there.
    fn volumes(&self, after: Option<&str>, limit: usize) -> Result<Vec<VolumeInfo>>;

    /// Sets the size, also while the volume is exported; shrinking is refused while it is.
    fn resize(&self, volume: &str, wish: &ResizeVolume) -> Result<VolumeInfo>;

    /// Deletes a volume with its snapshots; what is not there is a success. Clones of them stay whole. While the volume is
    /// in use it is [`Busy`](keyframe_agent_api::FaultKind::Busy).
    fn delete(&self, volume: &str) -> Result<()>;

    /// Snapshots volumes of this array, at one instant where its capabilities say so; otherwise whoever calls holds the
    /// writes. If only some of them have that snapshot, the rest of an earlier call is removed first, so that the set is
    /// never of two calls; if all have it, nothing is done. A failed call leaves no snapshot of that name.
    fn snapshot(&self, volumes: &[&str], snapshot: SnapshotId) -> Result<()>;

    /// Whether a volume has that snapshot; neither has a volume that is not there.
    fn has_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<bool>;

    /// The snapshots of a volume that have a snapshot id for a name, in no order.
    fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotId>>;

    /// Deletes one snapshot, whatever descends from it; what is not there is a success.
    fn delete_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<()>;

    /// Takes the volume to the snapshot. What was written since is lost; no other snapshot is touched. While the volume is
    /// in use it is [`Busy`](keyframe_agent_api::FaultKind::Busy).
    fn revert(&self, volume: &str, snapshot: SnapshotId) -> Result<()>;

    /// Space of a snapshot, or of the current state.
    fn space(&self, volume: &str, snapshot: Option<SnapshotId>) -> Result<SpaceUse>;

    /// What would become free if all of these went: snapshots, or whole volumes with their snapshots (`None`). What is not
    /// there frees nothing.
    fn would_free(&self, doomed: &[(&str, Option<SnapshotId>)]) -> Result<Bytes>;

    /// Changed extents from one snapshot (or nothing) to another, by offset, beginning at or after `after`; at most `limit`.
    fn diff(
        &self,
        from: Option<(&str, SnapshotId)>,
        to: (&str, SnapshotId),
        after: Bytes,
        limit: usize,
    ) -> Result<Vec<ChangedExtent>>;

    /// Its volumes as block devices: `volume` can be written, `volume@snapshot` can be read.
    fn blocks(&self) -> Arc<dyn Blocks>;

    /// Makes everything durable and lets go; nothing is asked of it afterwards.
    fn close(&self) -> Result<()>;
}
