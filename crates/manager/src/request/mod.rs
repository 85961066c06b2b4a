//! What callers ask for and what they are answered: the shapes of the REST interface, one file for each resource.
//!
//! Bodies refer to things by identifier; whoever has only a name asks `Manager::find_*` first. Unknown fields are refused,
//! so that a misspelt wish is not silently ignored.

mod clone;
mod diff;
mod disk;
mod host;
mod job;
mod page;
mod plan;
mod snapshot;
mod template;
mod vm;

pub use clone::{CloneCreate, CloneMemory, CloneSource};
pub use diff::{DiffView, DiskDiff, DiskPresence};
pub use disk::{DiskAttach, DiskContent, DiskResize, DiskSpec, DiskView};
pub use host::{HostStatus, HostView};
pub use job::{JobError, JobFilter, JobRef, JobView};
pub use keyframe_model::apply::{DiskFate, MemoryUse};
pub use keyframe_model::copy::NicPolicy;
pub use page::{Call, Caller, Key, Outcome, Page, PageRequest};
pub use plan::{ApplyPlanView, DeletePlanView, DiskChange, PlanView, SnapshotName};
pub use snapshot::{
    Apply, SnapshotCreate, SnapshotDelete, SnapshotFilter, SnapshotSpace, SnapshotUpdate, SnapshotView, TreeNode,
    TreeView,
};
pub use template::{TemplateCreate, TemplateFilter, TemplateSource, TemplateUpdate, TemplateView};
pub use vm::{
    ConsoleRequest, NicSpec, StartRequest, StopRequest, VmCreate, VmDelete, VmFilter, VmSource, VmSpace, VmUpdate,
    VmView,
};
