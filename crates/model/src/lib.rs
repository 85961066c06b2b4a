//! The rules: what virtual machines, snapshots, trees and jobs are, what may be done to them, and what follows from it.
//!
//! Pure functions over plain values. No I/O, no clock, no randomness: moments and identifiers come from the caller.
//! What a button or a command may do is asked here, and a refusal carries the sentence that people read.

pub mod apply;
pub mod copy;
pub mod delete;
pub mod hardware;
mod job;
pub mod memory;
mod name;
mod refusal;
mod snapshot;
mod template;
mod tree;
mod vm;
mod vm_rules;

pub use job::{JobEvent, JobKind, JobState, Progress};
pub use keyframe_agent_api as agent;
pub use name::{Name, NamePattern, Tag, numbered};
pub use refusal::{Refusal, RefusalKind};
pub use snapshot::{
    Consistency, Finding, Snapshot, SnapshotDisk, SnapshotEvent, SnapshotKind, SnapshotOrigin, SnapshotState,
    Verification,
};
pub use template::{Template, TemplateEvent, TemplateOrigin, TemplateState};
pub use tree::{Node, Removal, Tree};
pub use vm::{Activity, Disk, Hardware, Nic, Notice, Rest, Trouble, Vm, VmEvent, VmState};
