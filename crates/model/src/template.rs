//! A template: disks that nothing writes to any more, to make machines of.
//!
//! ```text
//!  Creating ──Made──► Ready ──Begin──► Deleting ──► (nothing)
//!     │ Failed: (nothing)  ▲ Undone ◄──────┘
//!     └ Broke ─► Error ◄──── Broke; deleting an Error is allowed
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::agent::{Generation, JobId, SnapshotId, TemplateId, Timestamp, VmId};
use crate::vm::Hardware;
use crate::{Name, Refusal, RefusalKind};

/// A template as the catalog keeps it. Its volumes are its own: nothing that happens to what it was made of changes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Template {
    /// Never changes.
    pub id: TemplateId,
    /// Can be changed; unique among templates.
    pub name: Name,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Raised with every change.
    pub generation: Generation,
    /// What is being done to it.
    pub state: TemplateState,
    /// When it was ordered.
    pub created: Timestamp,
    /// What it was made of.
    pub origin: TemplateOrigin,
    /// The machine that it was made of, with the template's own volumes in it.
    pub hardware: Hardware,
    /// The name of the array snapshot, one on each of its volumes, that clones are made of.
    pub snapshot: SnapshotId,
}

/// What a template was made of. That may be gone since.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum TemplateOrigin {
    /// A stopped machine.
    Vm {
        /// Which.
        vm: VmId,
    },
    /// The disks of a snapshot.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
    },
}

/// The state of a template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum TemplateState {
    /// It is being made.
    Creating {
        /// By whom.
        job: JobId,
    },
    /// It can be cloned.
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

/// What happens to a template.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TemplateEvent {
    /// It is made.
    Made,
    /// It cannot be used.
    Broke(String),
    /// A job begins to delete it.
    BeginDelete(JobId),
    /// It is not deleted after all.
    DeleteUndone,
}

impl Template {
    /// Whether it can be cloned.
    pub fn usable(&self) -> Result<(), Refusal> {
        match &self.state {
            TemplateState::Ready => Ok(()),
            TemplateState::Creating { job } => Err(self.busy("being made", *job)),
            TemplateState::Deleting { job } => Err(self.busy("being deleted", *job)),
            TemplateState::Error { reason } => Err(Refusal::new(
                RefusalKind::State,
                format!("template {} cannot be used: {reason}; delete it", self.name),
            )),
        }
    }

    /// Whether it can be deleted.
    pub fn deletable(&self) -> Result<(), Refusal> {
        match &self.state {
            TemplateState::Ready | TemplateState::Error { .. } => Ok(()),
            TemplateState::Creating { job } => Err(self.busy("being made", *job)),
            TemplateState::Deleting { job } => Err(self.busy("being deleted", *job)),
        }
    }

    /// The state after the event.
    pub fn after(&self, event: &TemplateEvent) -> Result<TemplateState, Refusal> {
        match (event, &self.state) {
            (TemplateEvent::Made, TemplateState::Creating { .. })
            | (TemplateEvent::DeleteUndone, TemplateState::Deleting { .. }) => Ok(TemplateState::Ready),
            (TemplateEvent::Broke(reason), _) => Ok(TemplateState::Error { reason: reason.clone() }),
            (TemplateEvent::BeginDelete(job), _) => {
                self.deletable()?;
                Ok(TemplateState::Deleting { job: *job })
            }
            (
                TemplateEvent::Made,
                TemplateState::Ready | TemplateState::Deleting { .. } | TemplateState::Error { .. },
            )
            | (
                TemplateEvent::DeleteUndone,
                TemplateState::Creating { .. } | TemplateState::Ready | TemplateState::Error { .. },
            ) => Err(Refusal::new(RefusalKind::State, format!("template {} is not in the middle of that", self.name))),
        }
    }

    fn busy(&self, doing: &str, job: JobId) -> Refusal {
        Refusal::new(RefusalKind::Busy, format!("template {} is {doing}; wait for job {job}", self.name))
    }
}
