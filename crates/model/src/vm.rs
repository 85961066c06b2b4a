//! A virtual machine: its hardware, and the states it goes through.
//!
//! ```text
//!            Begin(Create)                    Begin(activity)
//!  (nothing) ────────────► Busy{from: ─, …} ◄──────────────── At(rest) ◄─┐
//!                             │  Finished(rest) ─────────────────────────┤
//!                             │  Undone         ──► what it was before   │
//!                             │  Broke(reason)  ──► Error ── Begin ──► Busy{error, …}
//!                             └─ Deleted        ──► Gone
//! ```
//!
//! Out of Error leads what ends well: applying a snapshot, deleting the machine, and stopping it where its disks are whole.
//! What does not begin or is undone leads back to it, for the same reason.
//!
//! One activity at a time: whoever wants another is refused, with the name of the one under way.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Name;
use crate::agent::{
    Bytes, CloudInit, DirectBoot, DiskId, Firmware, Generation, JobId, NicConnection, NicId, PauseReason, SnapshotId,
    Timestamp, VmId, VolumeRef,
};

/// A virtual machine as the catalog keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Never changes.
    pub id: VmId,
    /// Can be changed.
    pub name: Name,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Raised with every change.
    pub generation: Generation,
    /// What it is doing.
    pub state: VmState,
    /// When it was made.
    pub created: Timestamp,
    /// What it consists of.
    pub hardware: Hardware,
    /// The snapshot that its current state descends from.
    pub current: Option<SnapshotId>,
    /// What happened to its guest that nobody wished, for people. Goes when it is started, stopped, resumed, reset or taken to a
    /// snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Notice>,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Notice {
    /// When.
    pub at: Timestamp,
    /// What, for people.
    pub text: String,
}

/// What a machine consists of. Snapshots carry a copy, and applying one brings it back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Hardware {
    /// The hypervisor's versioned machine type, chosen when the machine is made and never changed.
    pub machine_type: String,
    /// What the guest reads as its generation id; new after each apply, clone and fork.
    pub generation_id: Uuid,
    /// Virtual processors.
    pub cpus: u32,
    /// RAM.
    pub memory: Bytes,
    /// What starts first.
    pub firmware: Firmware,
    /// A kernel from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_boot: Option<DirectBoot>,
    /// The disks at their places.
    pub disks: Vec<Disk>,
    /// The network interfaces at their places.
    pub nics: Vec<Nic>,
    /// For a fresh guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
}

/// A disk of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Never changes, nor does its volume.
    pub id: DiskId,
    /// For people; unique within the machine.
    pub name: Name,
    /// 0 to 23: its place.
    pub slot: u8,
    /// Where the blocks are.
    pub volume: VolumeRef,
    /// As the guest sees it.
    pub size: Bytes,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// The firmware's variable store.
    #[serde(default)]
    pub firmware_variables: bool,
}

/// A network interface of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Nic {
    /// Never changes.
    pub id: NicId,
    /// 0 to 7: its place.
    pub slot: u8,
    /// Six bytes in hexadecimal with colons, lower case.
    pub mac: String,
    /// Where it leads.
    pub connection: NicConnection,
    /// Whether the cable is in.
    pub link_up: bool,
}

/// What a machine does when nothing is being done to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "power", rename_all = "kebab-case")]
pub enum Rest {
    /// Off.
    Stopped,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused {
        /// Why.
        reason: PauseReason,
    },
}

/// What is being done to a machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// It is being made.
    Creating,
    /// It is being started.
    Starting,
    /// It is being stopped.
    Stopping,
    /// Its guest is being stopped for a while.
    Pausing,
    /// Its guest is being continued.
    Resuming,
    /// Its guest is being restarted.
    Resetting,
    /// A snapshot is being taken.
    Snapshotting,
    /// A snapshot is being applied.
    Applying,
    /// It is being copied.
    Cloning,
    /// Its hardware is being changed.
    Reconfiguring,
    /// It is being deleted.
    Deleting,
}

/// What is wrong with a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Trouble {
    /// Why, for people.
    pub reason: String,
    /// Its disks may be of different instants or not whole, so a stop does not make it one that can be started: only applying a
    /// snapshot or deleting it does.
    #[serde(default)]
    pub spoilt: bool,
}

/// The state of a machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum VmState {
    /// Nothing is being done to it.
    At {
        /// What it does.
        #[serde(flatten)]
        rest: Rest,
    },
    /// A job is at work.
    Busy {
        /// What it did before; absent for one that is being made.
        from: Option<Rest>,
        /// What was wrong with it before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Trouble>,
        /// What is being done.
        activity: Activity,
        /// By whom.
        job: JobId,
    },
    /// It needs somebody's attention.
    Error {
        /// Why.
        #[serde(flatten)]
        trouble: Trouble,
    },
    /// It is deleted.
    Gone,
}

/// What happens to a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmEvent {
    /// A job begins.
    Begin {
        /// To do what.
        activity: Activity,
        /// Which.
        job: JobId,
    },
    /// The job is done.
    Finished(Rest),
    /// The job failed, and everything is as before.
    Undone,
    /// The job failed, and what is there is neither the old nor the new: what it did decides whether the disks are spoilt.
    Broke(String),
    /// It has been deleted.
    Deleted,
    /// The host says what it does, unasked.
    Observed(Rest),
}
