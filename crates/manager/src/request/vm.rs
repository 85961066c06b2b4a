//! Machines: wishes and views.

use keyframe_model::agent::{
    Bytes, CloudInit, DirectBoot, Firmware, Micros, NicConnection, NicId, SnapshotId, TemplateId, VmStatus,
};
use keyframe_model::{Activity, Name, Vm};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::DiskSpec;

/// A machine to be made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Unique among machines.
    pub name: Name,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What it is made of. With a source the hardware is the source's, and what is given here besides replaces it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VmSource>,
    /// Virtual processors; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// RAM, a multiple of 1 MiB; 512 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// What starts first; not with a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// At places 0, 1, 2, …; with a source, after the source's.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// At places 0, 1, 2, …; one of type `user` when absent, the source's with new addresses when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicSpec>>,
    /// For a fresh guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// A kernel from outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_boot: Option<DirectBoot>,
    /// Start it when it is made.
    #[serde(default)]
    pub start: bool,
}

/// What a new machine is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum VmSource {
    /// A template.
    Template {
        /// Which.
        template: TemplateId,
    },
    /// The disks of a snapshot; for its memory, clone it.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
    },
}

/// A network interface to be made, or one to be kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// One the machine has, which keeps its place and address; a new one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<NicId>,
    /// Where it leads.
    pub connection: NicConnection,
    /// Six bytes in hexadecimal with colons; a random local one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether the cable is in.
    #[serde(default = "yes")]
    pub link_up: bool,
}

fn yes() -> bool {
    true
}

/// Changes a machine. What is absent stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// A new description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Virtual processors; the machine must be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// RAM, a multiple of 1 MiB; the machine must be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// All network interfaces; the machine must be stopped unless only cables are plugged in or out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicSpec>>,
}

/// Starts a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// Leave its processors standing still.
    #[serde(default)]
    pub paused: bool,
}

/// Stops a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Pull the plug at once.
    #[serde(default)]
    pub hard: bool,
    /// How long the guest may take when asked; 60 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Micros>,
    /// Fail after the deadline rather than pull the plug.
    #[serde(default)]
    pub never_hard: bool,
}

/// Deletes a machine with its disks and snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct VmDelete {
    /// Also if it runs: pull the plug first.
    #[serde(default)]
    pub force: bool,
    /// Change nothing, say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// Which machines.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct VmFilter {
    /// Of this name exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// With this word in name or description, upper or lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    /// `stopped`, `running`, `paused`, `busy` or `error`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Say what each takes; takes longer.
    #[serde(default)]
    pub space: bool,
}

/// How a console is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleRequest {
    /// Take it over from whoever has it; a console has one session at a time.
    #[serde(default)]
    pub force: bool,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// The machine.
    #[serde(flatten)]
    pub vm: Vm,
    /// What may be done to it now.
    pub allowed: Vec<Activity>,
    /// How many snapshots it has; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u32>,
    /// The name of the snapshot that its state descends from; absent in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_name: Option<Name>,
    /// What the host says of its process; absent in lists, and when the host cannot be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<VmStatus>,
    /// What it takes, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<VmSpace>,
    /// What people should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// What a machine takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct VmSpace {
    /// The sizes of its disks, as the guest sees them.
    pub provisioned: Bytes,
    /// Blocks that its current state refers to.
    pub referenced: Bytes,
    /// Of these, blocks that nothing else refers to.
    pub unique: Bytes,
    /// Stored memory of its snapshots.
    pub memory: Bytes,
    /// What would become free if it were deleted with its snapshots, memory included.
    pub would_free: Bytes,
}
