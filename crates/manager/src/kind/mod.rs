//! The kinds of jobs, one file for each or for each resource.
//!
//! Each takes hold of what it works on in the transaction that makes the job, does steps that can be repeated, and lets go
//! in the transaction that ends it. Whatever is decided is decided before the first step.

pub(crate) mod apply;
pub(crate) mod clone;
pub(crate) mod configure;
pub(crate) mod disk;
pub(crate) mod fresh;
pub(crate) mod hold;
pub(crate) mod image;
pub(crate) mod power;
pub(crate) mod snapshot_create;
pub(crate) mod snapshot_delete;
pub(crate) mod source;
mod step;
pub(crate) mod template;
pub(crate) mod vm_create;
pub(crate) mod vm_delete;

use crate::agent::Agent;
use crate::job::Registry;

/// All of them.
pub(crate) fn registry(agent: &Agent) -> Registry {
    let agent = || agent.clone();
    Registry::new()
        .with(vm_create::VmCreate { agent: agent() })
        .with(power::VmStart { agent: agent() })
        .with(power::VmStop { agent: agent() })
        .with(power::VmPause { agent: agent() })
        .with(power::VmResume { agent: agent() })
        .with(power::VmReset { agent: agent() })
        .with(configure::VmConfigure { agent: agent() })
        .with(vm_delete::VmDelete { agent: agent() })
        .with(disk::DiskAttach { agent: agent() })
        .with(disk::DiskDetach { agent: agent() })
        .with(disk::DiskResize { agent: agent() })
        .with(snapshot_create::SnapshotCreate { agent: agent() })
        .with(apply::SnapshotApply { agent: agent() })
        .with(snapshot_delete::SnapshotDelete { agent: agent() })
        .with(image::SnapshotCompress { agent: agent() })
        .with(image::SnapshotVerify { agent: agent() })
        .with(clone::CloneVm { agent: agent() })
        .with(template::TemplateCreate { agent: agent() })
        .with(template::TemplateDelete { agent: agent() })
}
