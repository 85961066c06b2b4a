//! Arrays: whatever makes volumes, snapshots and clones natively.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Bytes, Generation, SnapshotId, VmId};

/// A volume: an array's name and a name on that array.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeRef {
    /// The array's name in the agent's configuration.
    pub array: String,
    /// The volume's name: letters, digits, `.`, `_` and `-`.
    pub volume: String,
}

impl std::fmt::Display for VolumeRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.array, self.volume)
    }
}

/// A volume as it was at a snapshot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotRef {
    /// The volume.
    pub volume: VolumeRef,
    /// The snapshot.
    pub snapshot: SnapshotId,
}

/// What an array is and can do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ArrayInfo {
    /// Its name in the agent's configuration.
    pub name: String,
    /// The driver, for example `engine`.
    pub driver: String,
    /// All it can hold.
    pub capacity: Bytes,
    /// What is in use.
    pub used: Bytes,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// What differs between arrays. Whatever is not here, every driver can do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// Several volumes are snapshotted at one instant by the array itself.
    pub group_snapshot: bool,
    /// Any snapshot can be deleted while others depend on it.
    pub delete_any: bool,
    /// The unique bytes of each snapshot are known exactly.
    pub exact_space: bool,
    /// Changed extents between two snapshots are known without reading data.
    pub diff: bool,
    /// Most snapshots of one volume; `None` is no limit of the array's own.
    pub max_snapshots: Option<u32>,
}

/// Makes a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateVolume {
    /// What is in it at first.
    pub source: VolumeSource,
    /// The size; larger than the source only. The source's when absent, required when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
}

/// What a volume starts from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum VolumeSource {
    /// Zeroes.
    Empty,
    /// A file of the host.
    Image {
        /// Its absolute path.
        path: String,
        /// Found out from the header when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<ImageFormat>,
    },
    /// A thin clone of a snapshot on the same array.
    Snapshot(SnapshotRef),
}

/// The format of an image file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's, version 2 or 3, without a backing file.
    Qcow2,
}

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VolumeInfo {
    /// Which.
    pub volume: VolumeRef,
    /// As the guest sees it.
    pub size: Bytes,
    /// How many snapshots it has.
    pub snapshots: u64,
}

/// Sets the size of a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResizeVolume {
    /// The new size. Shrinking is refused unless `shrink` is set.
    pub size: Bytes,
    /// What lies beyond the new end may be lost.
    #[serde(default)]
    pub shrink: bool,
}

/// Takes a volume back to one of its snapshots. Its state until then is not kept: snapshot it first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct RevertVolume {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The machine that it is a disk of, to which nothing else is done meanwhile.
    pub vm: VmId,
    /// Of the call; an older one changes nothing.
    pub generation: Generation,
}

/// Asks what snapshots hold.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SpaceRequest {
    /// Wanted for each of these on its own.
    #[serde(default)]
    pub each: Vec<SnapshotRef>,
    /// What would become free if all of these went together.
    #[serde(default)]
    pub would_free: Vec<SnapshotRef>,
    /// What would become free if these volumes went with all their snapshots.
    #[serde(default)]
    pub would_free_volumes: Vec<VolumeRef>,
    /// Wanted for the current state of each of these.
    #[serde(default)]
    pub heads: Vec<VolumeRef>,
}

/// Answers a [`SpaceRequest`], in its order.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SpaceResponse {
    /// One for each of `each`; `None` for what is not there.
    pub each: Vec<Option<SpaceUse>>,
    /// For all of `would_free` and `would_free_volumes` together.
    pub would_free: Bytes,
    /// One for each of `heads`.
    pub heads: Vec<Option<SpaceUse>>,
}

/// Space of one version of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct SpaceUse {
    /// All blocks that it refers to.
    pub referenced: Bytes,
    /// Blocks that nothing else refers to.
    pub unique: Bytes,
}

/// Asks what changed in a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiffRequest {
    /// The older; everything is new when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SnapshotRef>,
    /// The newer; of the same volume or a clone of it.
    pub to: SnapshotRef,
    /// Extents below this offset were seen already.
    #[serde(default)]
    pub after: Bytes,
    /// Most extents in the answer.
    pub limit: u32,
}

/// Answers a [`DiffRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiffResponse {
    /// By offset, not overlapping.
    pub extents: Vec<ChangedExtent>,
    /// Where to go on; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Bytes>,
}

/// A range that may differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChangedExtent {
    /// The first byte.
    pub offset: Bytes,
    /// How many.
    pub length: Bytes,
    /// It reads as zeroes in the newer.
    pub zero: bool,
}
