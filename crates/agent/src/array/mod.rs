//! Arrays: the seam to whatever makes volumes, snapshots and clones natively.
//!
//! A driver does what it is told, once: it knows no machine, no tree and no job. Volumes are named by the caller, and so
//! are snapshots, which makes every call repeatable: what is there already in the wished shape is a success.

use keyframe_agent_api::{ArrayInfo, ChangedExtent, CreateVolume, ResizeVolume, SnapshotId, SpaceUse, VolumeInfo};

use crate::Result;

/// What makes volumes. Calls wait for I/O; any number of threads may call at once.
pub trait Array: Send + Sync {
    /// What it is and can do, and how full it is.
    fn info(&self) -> Result<ArrayInfo>;

    /// Makes a volume with its first content. One of that name with that size and source is a success; a different one is
    /// [`Exists`](keyframe_agent_api::FaultKind::Exists). A failed or killed import leaves nothing, or what a repeated
    /// call completes.
    fn create(&self, volume: &str, wish: &CreateVolume) -> Result<VolumeInfo>;

    /// One volume.
    fn volume(&self, volume: &str) -> Result<VolumeInfo>;

    /// A page of volumes in the order of their names.
    fn volumes(&self, after: Option<&str>, limit: usize) -> Result<Vec<VolumeInfo>>;

    /// Sets the size, also while the volume is exported.
    fn resize(&self, volume: &str, wish: &ResizeVolume) -> Result<VolumeInfo>;

    /// Deletes a volume with its snapshots; what is not there is a success. Clones of them stay whole.
    fn delete(&self, volume: &str) -> Result<()>;

    /// Snapshots volumes of this array at one instant. If only some of them have that snapshot, the rest of an earlier
    /// call is removed first, so that the set is never of two instants; if all have it, nothing is done.
    fn snapshot(&self, volumes: &[&str], snapshot: SnapshotId) -> Result<()>;

    /// The snapshots of a volume that have a snapshot id for a name, in no order.
    fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotId>>;

    /// Deletes one snapshot, whatever descends from it; what is not there is a success.
    fn delete_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<()>;

    /// Takes the volume to the snapshot. What was written since is lost; no other snapshot is touched. Refused while the
    /// volume is in use.
    fn revert(&self, volume: &str, snapshot: SnapshotId) -> Result<()>;

    /// Space of a snapshot, or of the current state.
    fn space(&self, volume: &str, snapshot: Option<SnapshotId>) -> Result<SpaceUse>;

    /// What would become free if all of these went: snapshots, or whole volumes with their snapshots (`None`).
    fn would_free(&self, doomed: &[(&str, Option<SnapshotId>)]) -> Result<keyframe_agent_api::Bytes>;

    /// Changed extents from one snapshot (or nothing) to another, by offset, beginning at or after `after`; at most `limit`.
    fn diff(
        &self,
        from: Option<(&str, SnapshotId)>,
        to: (&str, SnapshotId),
        after: keyframe_agent_api::Bytes,
        limit: usize,
    ) -> Result<Vec<ChangedExtent>>;
}
