//! One instant of a machine: all its disks, and its memory if asked.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Bytes, Generation, Micros, Timestamp, VmId, VolumeRef};

/// Takes one instant. Named by a snapshot id in the path; each volume gets an array snapshot of that name. If all of it
/// is there already, nothing is done and the answer is the stored report.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TakeInstant {
    /// The machine that uses the volumes; running or not.
    pub vm: VmId,
    /// The machine's.
    pub generation: Generation,
    /// All of them, on whatever arrays.
    pub volumes: Vec<VolumeRef>,
    /// The machine's memory too; it must be running or paused.
    pub memory: bool,
    /// Whether the guest's file systems are to be made clean first.
    #[serde(default)]
    pub quiesce: Quiesce,
    /// How long the guest agent may take to freeze, and the longest that writes may be held.
    pub deadline: Micros,
}

/// Whether the guest's file systems are frozen around the instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Quiesce {
    /// They are not; the instant is like a power failure, which file systems survive.
    #[default]
    No,
    /// If the guest agent does it within the deadline.
    Preferred,
    /// Or the instant is not taken.
    Required,
}

/// What became of an instant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstantReport {
    /// When it was, by the host's clock.
    pub at: Timestamp,
    /// How the cut was made.
    pub method: CutMethod,
    /// What the guest agent said.
    pub guest: GuestAnswer,
    /// How long the guest's processors stood still.
    pub paused: Micros,
    /// How long the guest's writes were held.
    pub held: Micros,
    /// How long the guest's file systems were frozen.
    pub frozen: Micros,
    /// Present if memory was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryInfo>,
}

/// How all parts came to be of one instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CutMethod {
    /// The machine was off; or it stood still, and its memory is in the instant.
    AtRest,
    /// Writes to all disks were held for the moment of the cut.
    WritesHeld,
    /// The cut was made when the hypervisor resumed the guest with its memory write-tracked.
    AtResume,
    /// The guest was stopped until its memory was stored, for the hypervisor could not track writes to it.
    Stopped,
}

/// What the guest agent did.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum GuestAnswer {
    /// It was not asked.
    NotAsked,
    /// It froze the file systems, and they were still frozen at the cut.
    Frozen {
        /// How many.
        file_systems: u32,
    },
    /// It did not; the instant is as after a power failure.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

/// A stored memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MemoryInfo {
    /// The machine's RAM.
    pub memory: Bytes,
    /// What the image takes on the host's file system.
    pub stored: Bytes,
    /// The hypervisor and its version, for example `qemu 10.0.2`.
    pub hypervisor: String,
    /// The guest was emulated rather than run by the processor.
    #[serde(default)]
    pub emulated: bool,
    /// Stored compressed.
    pub compressed: bool,
}

/// What is there of an instant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstantProbe {
    /// Volumes that have a snapshot of this name.
    pub volumes: Vec<VolumeRef>,
    /// The memory image.
    pub memory: MemoryState,
    /// Present if the instant was completed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<InstantReport>,
}

/// A memory image as it is found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum MemoryState {
    /// There is none.
    Absent,
    /// It is being written.
    Writing {
        /// Bytes so far.
        stored: Bytes,
    },
    /// It is whole.
    Ready(MemoryInfo),
    /// It cannot be used.
    Damaged {
        /// Why, for people.
        reason: String,
    },
}
