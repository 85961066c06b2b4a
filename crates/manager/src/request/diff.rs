//! What differs between two snapshots.

use keyframe_model::Name;
use keyframe_model::agent::{Bytes, DiskId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::SnapshotName;

/// What differs between the disks of two snapshots of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiffView {
    /// The one it is compared with.
    pub from: SnapshotName,
    /// The one that was asked about.
    pub to: SnapshotName,
    /// One for each disk of either: those of `to` first.
    pub disks: Vec<DiskDiff>,
    /// One of them has memory; that is not compared.
    pub memory_left_out: bool,
}

/// What differs in one disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskDiff {
    /// Which.
    pub id: DiskId,
    /// Its name.
    pub name: Name,
    /// In which of the two it is.
    pub presence: DiskPresence,
    /// Bytes that may differ and are not all zero in `to`.
    pub changed: Bytes,
    /// Bytes that may differ and read as zeroes in `to`.
    pub zeroed: Bytes,
    /// In so many pieces.
    pub extents: u64,
}

/// In which of two snapshots a disk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskPresence {
    /// In both.
    Both,
    /// In `from` only; nothing of it is counted.
    OnlyBefore,
    /// In `to` only; all its data is counted.
    OnlyAfter,
}
