//! Hosts as callers see them.

use keyframe_model::agent::{HostInfo, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// Its name.
    pub name: String,
    /// Whether its agent answers.
    pub status: HostStatus,
    /// When its agent answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Timestamp>,
    /// What its agent said then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<HostInfo>,
    /// What people should know: guests are emulated, an array is nearly full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notices: Vec<String>,
}

/// Whether a host's agent answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HostStatus {
    /// It does.
    Up,
    /// It does not; machines go on running, nothing can be done to them.
    Unreachable,
}
