//! Clones and forks: wishes.

use keyframe_model::agent::{SnapshotId, TemplateId, VmId};
use keyframe_model::copy::NicPolicy;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Machines to be made of another one, thinly: they share its blocks and depend on nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneCreate {
    /// What they are made of.
    pub source: CloneSource,
    /// A name, in which `{n}` stands for 1, 2, 3, …; needed for more than one.
    pub name: String,
    /// How many, 1 to 1000; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// What `{n}` starts with; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<u32>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// With memory they run where the source ran (a fork).
    #[serde(default)]
    pub memory: CloneMemory,
    /// What becomes of the network interfaces. When absent: `disconnect` with memory, `keep` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<NicPolicy>,
    /// Start them, if they come without memory.
    #[serde(default)]
    pub start: bool,
    /// With memory: do not ask the guest agent to set address, clock and host name.
    #[serde(default)]
    pub keep_identity: bool,
}

/// What clones are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum CloneSource {
    /// A machine as it is now, running or not: an instant of it is taken, and removed at the end.
    Vm {
        /// Which.
        vm: VmId,
    },
    /// A snapshot.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// A template.
    Template {
        /// Which.
        template: TemplateId,
    },
}

/// Whether clones get the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CloneMemory {
    /// Disks only.
    #[default]
    No,
    /// Memory too.
    Yes,
}
