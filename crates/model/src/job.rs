//! Jobs: long work that a user waits for.
//!
//! ```text
//!  Queued ──► Running ──► Succeeded
//!     │          │ step failed, or somebody cancelled
//!     │          ▼
//!     │       Undoing ──► Failed | Cancelled
//!     └─ cancelled ──► Cancelled
//! ```
//! A step that cannot be undone, tried often enough, ends the job as Failed with what is left behind in its reason.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Refusal, RefusalKind};

/// What a job does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Makes a machine.
    VmCreate,
    /// Starts one.
    VmStart,
    /// Stops one.
    VmStop,
    /// Pauses one.
    VmPause,
    /// Resumes one.
    VmResume,
    /// Resets one.
    VmReset,
    /// Changes processors, memory or network interfaces.
    VmConfigure,
    /// Deletes one, with its snapshots.
    VmDelete,
    /// Adds a disk.
    DiskAttach,
    /// Takes a disk out.
    DiskDetach,
    /// Changes a disk's size.
    DiskResize,
    /// Takes a snapshot.
    SnapshotCreate,
    /// Applies one.
    SnapshotApply,
    /// Deletes one, a subtree, or all.
    SnapshotDelete,
    /// Compresses the memory of one.
    SnapshotCompress,
    /// Verifies that one is whole.
    SnapshotVerify,
    /// Makes machines of a snapshot or template, or of another machine.
    Clone,
    /// Makes a template.
    TemplateCreate,
    /// Deletes a template.
    TemplateDelete,
}

impl JobKind {
    /// Whether something new takes room when it is done, which what ends, stops or deletes something does not.
    pub const fn takes_room(self) -> bool {
        match self {
            JobKind::VmCreate
            | JobKind::DiskAttach
            | JobKind::SnapshotCreate
            | JobKind::SnapshotApply
            | JobKind::SnapshotCompress
            | JobKind::Clone
            | JobKind::TemplateCreate => true,
            JobKind::VmStart
            | JobKind::VmStop
            | JobKind::VmPause
            | JobKind::VmResume
            | JobKind::VmReset
            | JobKind::VmConfigure
            | JobKind::VmDelete
            | JobKind::DiskDetach
            | JobKind::DiskResize
            | JobKind::SnapshotDelete
            | JobKind::SnapshotVerify
            | JobKind::TemplateDelete => false,
        }
    }
}

/// The state of a job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Not begun.
    Queued,
    /// At work.
    Running,
    /// Taking back what it did.
    Undoing,
    /// Done.
    Succeeded,
    /// Not done; everything is as before, or its reason says what is not.
    Failed,
    /// Not done, because somebody wished so; everything is as before.
    Cancelled,
}

/// What happens to a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobEvent {
    /// A worker takes it.
    Start,
    /// Its last step is done.
    Done,
    /// A step failed.
    StepFailed,
    /// Somebody wishes it undone.
    Cancel,
    /// All is undone after a failure.
    UndoneFailed,
    /// All is undone after a wish.
    UndoneCancelled,
}

/// How far a job is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// So much of `total`.
    pub done: u64,
    /// In the job's own unit: steps, machines or bytes. 0 while unknown.
    pub total: u64,
}

impl JobState {
    /// Nothing more will happen to it.
    pub const fn ended(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }

    /// The state after the event.
    pub fn after(self, event: JobEvent) -> Result<JobState, Refusal> {
        let refuse = |why: &str| Err(Refusal::new(RefusalKind::State, format!("the job {why}")));
        match (self, event) {
            (JobState::Queued, JobEvent::Start) => Ok(JobState::Running),
            (JobState::Queued, JobEvent::Cancel) => Ok(JobState::Cancelled),
            (JobState::Running, JobEvent::Start) | (JobState::Undoing, JobEvent::Start) => Ok(self),
            (JobState::Running, JobEvent::Done) => Ok(JobState::Succeeded),
            (JobState::Running, JobEvent::StepFailed | JobEvent::Cancel) => Ok(JobState::Undoing),
            (JobState::Undoing, JobEvent::UndoneFailed) => Ok(JobState::Failed),
            (JobState::Undoing, JobEvent::UndoneCancelled) => Ok(JobState::Cancelled),
            (JobState::Undoing, JobEvent::Cancel) => refuse("is being undone already"),
            (JobState::Succeeded | JobState::Failed | JobState::Cancelled, _) => refuse("has ended"),
            (
                JobState::Queued,
                JobEvent::Done | JobEvent::StepFailed | JobEvent::UndoneFailed | JobEvent::UndoneCancelled,
            ) => refuse("has not begun"),
            (JobState::Running, JobEvent::UndoneFailed | JobEvent::UndoneCancelled)
            | (JobState::Undoing, JobEvent::Done | JobEvent::StepFailed) => refuse("is not at that point"),
        }
    }
}
