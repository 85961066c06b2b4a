//! Jobs as callers see them.

use keyframe_model::agent::{InstantReport, JobId, SnapshotId, TemplateId, Timestamp, VmId};
use keyframe_model::{JobKind, JobState, Progress};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::ErrorKind;

/// A job that has been ordered, and what it makes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobRef {
    /// The job.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The machines that it makes or works on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<VmId>,
    /// The machine that it copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VmId>,
    /// The snapshot that it makes or works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
    /// The template that it makes or works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<TemplateId>,
}

impl From<&keyframe_catalog::Job> for JobRef {
    fn from(job: &keyframe_catalog::Job) -> JobRef {
        JobRef {
            id: job.id,
            kind: job.kind,
            vms: job.vms.clone(),
            source: job.source,
            snapshot: job.snapshot,
            template: job.template,
        }
    }
}

/// A job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Which, and what it is about.
    #[serde(flatten)]
    pub job: JobRef,
    /// What it does, for people: "snapshot web-1 as nightly".
    pub title: String,
    /// How it stands.
    pub state: JobState,
    /// How far it is.
    pub progress: Progress,
    /// What it is doing, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Who ordered it.
    pub caller: String,
    /// When it was ordered.
    pub created: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Timestamp>,
    /// Why it failed, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// What is worth knowing although it succeeded, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How an instant was taken of the machine that it copies: how long that stood still and its writes were held, and by what
    /// method. That of a snapshot is on the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instant: Option<InstantReport>,
    /// Cancelling it is possible now.
    pub cancellable: bool,
}

/// Why a job failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobError {
    /// For programs.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

/// Which jobs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct JobFilter {
    /// About this machine, or of copies of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// In this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// Of this kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<JobKind>,
    /// Only those that have not ended.
    #[serde(default)]
    pub active: bool,
}
