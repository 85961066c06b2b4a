//! A snapshot of a virtual machine: one instant of all its disks, its hardware, and its memory if asked.
//!
//! ```text
//!  Creating ──Taken──► Ready ──Begin──► Deleting ──Deleted──► (nothing)
//!     │ Failed: (nothing)   ▲ Undone ◄──────┘
//!     └ Broke ─► Error ◄────── Broke; deleting an Error is allowed
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::{Bytes, DiskId, InstantReport, JobId, Quiesce, SnapshotId, TemplateId, Timestamp, VmId, VolumeRef};
use crate::vm::Hardware;
use crate::{Name, Refusal, RefusalKind, Tag};

/// A snapshot as the catalog keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Never changes; names its parts on the arrays.
    pub id: SnapshotId,
    /// The machine it is of.
    pub vm: VmId,
    /// Can be changed; unique within the machine.
    pub name: Name,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// For people and policies.
    #[serde(default)]
    pub tags: Vec<Tag>,
    /// Raised with every change.
    pub generation: crate::agent::Generation,
    /// What is being done to it.
    pub state: SnapshotState,
    /// What it holds.
    pub kind: SnapshotKind,
    /// Why it was made.
    pub origin: SnapshotOrigin,
    /// The snapshot that the machine's state descended from then. Moves up when that one is deleted.
    pub parent: Option<SnapshotId>,
    /// When it was ordered; `report.at` is the instant.
    pub created: Timestamp,
    /// An automatic one goes after this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Nobody and no policy deletes it until it is unlocked.
    #[serde(default)]
    pub locked: bool,
    /// What was asked of the guest.
    #[serde(default)]
    pub quiesce: Quiesce,
    /// The machine then.
    pub hardware: Hardware,
    /// How it went; absent until it is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<InstantReport>,
    /// What was found when it was verified last; absent until it is, and after its memory was stored anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// What a verification of a snapshot has found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub finding: Finding,
}

/// How a snapshot was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "finding", rename_all = "kebab-case")]
pub enum Finding {
    /// All of it is there, and its memory is as it was captured, whether or not this host can load it.
    Whole,
    /// Something of it is lost or damaged.
    Damaged {
        /// What, for people, with what can be used still.
        reason: String,
    },
}

/// One disk in a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDisk {
    /// Which.
    pub id: DiskId,
    /// Where.
    pub volume: VolumeRef,
    /// Its size then.
    pub size: Bytes,
}

/// What a snapshot holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
pub enum SnapshotKind {
    /// All disks.
    #[serde(rename = "disk")]
    Disk,
    /// All disks and the memory.
    #[serde(rename = "disk+memory")]
    DiskAndMemory,
}

/// How consistent a snapshot is to the guest that starts from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after a power failure.
    Crash,
    /// File systems are clean.
    Filesystem,
    /// The guest goes on where it was.
    Memory,
}

/// Why a snapshot was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum SnapshotOrigin {
    /// Somebody asked for it.
    User,
    /// It keeps the state given up when that snapshot was applied.
    BeforeApply {
        /// The applied one.
        applied: SnapshotId,
    },
    /// A clone needed an instant of the running machine.
    ForClone {
        /// The new machine.
        clone: VmId,
    },
    /// A template was made of it.
    ForTemplate {
        /// The template.
        template: TemplateId,
    },
}

/// The state of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SnapshotState {
    /// It is being taken.
    Creating {
        /// By whom.
        job: JobId,
    },
    /// It can be used.
    Ready,
    /// It is being deleted.
    Deleting {
        /// By whom.
        job: JobId,
    },
    /// It cannot be used, only deleted.
    Error {
        /// Why, for people.
        reason: String,
    },
}

/// What happens to a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotEvent {
    /// It is taken.
    Taken,
    /// It cannot be used.
    Broke(String),
    /// A job begins to delete it.
    BeginDelete(JobId),
    /// It is not deleted after all.
    DeleteUndone,
}

impl SnapshotKind {
    /// Whether memory is in it.
    pub const fn has_memory(self) -> bool {
        matches!(self, SnapshotKind::DiskAndMemory)
    }
}

impl Snapshot {
    /// How consistent it is; `None` until it is taken.
    pub fn consistency(&self) -> Option<Consistency> {
        let report = self.report.as_ref()?;
        Some(match (self.kind, &report.guest) {
            (SnapshotKind::DiskAndMemory, _) => Consistency::Memory,
            (SnapshotKind::Disk, crate::agent::GuestAnswer::Frozen { .. }) => Consistency::Filesystem,
            (SnapshotKind::Disk, _) => Consistency::Crash,
        })
    }

    /// Its disks.
    pub fn disks(&self) -> impl Iterator<Item = SnapshotDisk> + '_ {
        self.hardware.disks.iter().map(|d| SnapshotDisk { id: d.id, volume: d.volume.clone(), size: d.size })
    }

    /// Whether it can be applied or cloned.
    pub fn usable(&self) -> Result<(), Refusal> {
        match &self.state {
            SnapshotState::Ready => Ok(()),
            SnapshotState::Creating { job } => Err(self.busy("being taken", *job)),
            SnapshotState::Deleting { job } => Err(self.busy("being deleted", *job)),
            SnapshotState::Error { reason } => Err(Refusal::new(
                RefusalKind::State,
                format!("snapshot {} cannot be used: {reason}; delete it", self.name),
            )),
        }
    }

    /// Whether it can be deleted.
    pub fn deletable(&self) -> Result<(), Refusal> {
        if self.locked {
            let message = format!("snapshot {} is locked; unlock it first", self.name);
            return Err(Refusal::new(RefusalKind::Locked, message));
        }
        match &self.state {
            SnapshotState::Ready | SnapshotState::Error { .. } => Ok(()),
            SnapshotState::Creating { job } => Err(self.busy("being taken", *job)),
            SnapshotState::Deleting { job } => Err(self.busy("being deleted", *job)),
        }
    }

    fn busy(&self, doing: &str, job: JobId) -> Refusal {
        Refusal::new(RefusalKind::Busy, format!("snapshot {} is {doing}; wait for job {job}", self.name))
    }

    /// The state after the event.
    pub fn after(&self, event: &SnapshotEvent) -> Result<SnapshotState, Refusal> {
        match (event, &self.state) {
            (SnapshotEvent::Taken, SnapshotState::Creating { .. })
            | (SnapshotEvent::DeleteUndone, SnapshotState::Deleting { .. }) => Ok(SnapshotState::Ready),
            (SnapshotEvent::Broke(reason), _) => Ok(SnapshotState::Error { reason: reason.clone() }),
            (SnapshotEvent::BeginDelete(job), _) => {
                self.deletable()?;
                Ok(SnapshotState::Deleting { job: *job })
            }
            (
                SnapshotEvent::Taken,
                SnapshotState::Ready | SnapshotState::Deleting { .. } | SnapshotState::Error { .. },
            )
            | (
                SnapshotEvent::DeleteUndone,
                SnapshotState::Creating { .. } | SnapshotState::Ready | SnapshotState::Error { .. },
            ) => Err(Refusal::new(RefusalKind::State, format!("snapshot {} is not in the middle of that", self.name))),
        }
    }
}
