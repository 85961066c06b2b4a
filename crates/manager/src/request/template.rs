//! Templates: wishes and views.

use keyframe_model::agent::{Bytes, SnapshotId, VmId};
use keyframe_model::{Name, Template};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A template to be made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateCreate {
    /// Unique among templates.
    pub name: Name,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What it is made of; nothing happens to that.
    pub source: TemplateSource,
}

/// What a template is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum TemplateSource {
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

/// Changes what is said about a template. What is absent stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateUpdate {
    /// A new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// A new description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Which templates.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct TemplateFilter {
    /// Of this name exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// With this word in name or description, upper or lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
}

/// A template.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TemplateView {
    /// The template.
    #[serde(flatten)]
    pub template: Template,
    /// The sizes of its disks.
    pub size: Bytes,
}
