//! Disks of machines: wishes and views.

use keyframe_model::agent::{Bytes, ImageFormat, SpaceUse, VmId};
use keyframe_model::{Disk, Name};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A disk to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// By default `disk0`, `disk1`, … by its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What is in it at first.
    #[serde(default)]
    pub content: DiskContent,
    /// Its size, a multiple of 4096; the image's when absent, required for an empty one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// The array it lies on; by default the host's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<String>,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
}

/// What is in a new disk.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DiskContent {
    /// Zeroes.
    #[default]
    Empty,
    /// The content of a file of the host.
    Image {
        /// Its absolute path there.
        path: String,
        /// Found out from the header when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<ImageFormat>,
    },
}

/// Adds a disk to a machine, also while it runs: a [`DiskSpec`] and a place. Written out, because what is flattened would let
/// members pass that nobody knows, a misspelt `read_only` among them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskAttach {
    /// By default `disk0`, `disk1`, … by its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// What is in it at first.
    #[serde(default)]
    pub content: DiskContent,
    /// Its size, a multiple of 4096; the image's when absent, required for an empty one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// The array it lies on; by default the host's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub array: Option<String>,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Its place, 0 to 23; the first free one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u8>,
}

impl DiskAttach {
    /// Adds this disk, at this place or the first free one.
    pub fn at(disk: DiskSpec, slot: Option<u8>) -> DiskAttach {
        let DiskSpec { name, content, size, array, read_only } = disk;
        DiskAttach { name, content, size, array, read_only, slot }
    }

    /// The disk without its place.
    pub fn into_disk(self) -> DiskSpec {
        let DiskAttach { name, content, size, array, read_only, slot: _ } = self;
        DiskSpec { name, content, size, array, read_only }
    }
}

/// Sets the size of a disk, also while its machine runs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    /// The new size, a multiple of 4096.
    pub size: Bytes,
    /// Making it smaller is meant: what lies beyond is lost (snapshots keep it). The machine must be stopped.
    #[serde(default)]
    pub shrink: bool,
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// The disk.
    #[serde(flatten)]
    pub disk: Disk,
    /// Whose it is.
    pub vm: VmId,
    /// It is in the machine now; otherwise only snapshots refer to it, and applying one of them brings it back.
    pub attached: bool,
    /// How many of the machine's snapshots refer to it.
    pub snapshots: u32,
    /// What its current state takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<SpaceUse>,
}
