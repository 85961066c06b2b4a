//! Clones and forks.

use keyframe_model::agent::MemoryState;
use keyframe_model::copy::{NicPolicy, check_count};
use keyframe_model::memory::Loader;
use keyframe_model::{Name, NamePattern};

use super::snapshot::check_description;
use crate::kind::clone::{CloneOrder, CloneVm, Origin};
use crate::kind::source::Source;
use crate::request::{Call, CloneCreate, CloneMemory, CloneSource, JobRef};
use crate::{Manager, Result};

impl Manager {
    /// Makes machines of a snapshot, a template, or another machine.
    pub async fn clone_vm(&self, call: &Call, wish: CloneCreate) -> Result<JobRef> {
        self.admit(&call.caller)?;
        let count = wish.count.unwrap_or(1);
        check_count(count)?;
        check_description(&wish.description)?;
        let names = NamePattern::new(wish.name.clone()).expand(wish.first.unwrap_or(1), count)?;
        names.iter().try_for_each(Name::check_new)?;
        let memory = wish.memory == CloneMemory::Yes;
        let nics = wish.nics.clone().unwrap_or(NicPolicy::default_for(memory));
        nics.check()?;
        let (mut found, mut loader) = (MemoryState::Absent, Loader::default());
        let origin = match wish.source {
            CloneSource::Vm { vm } => Origin::Vm(vm),
            CloneSource::Template { template } => Origin::Kept(Source::Template(template)),
            CloneSource::Snapshot { snapshot } => {
                let snapshot = self.catalog.read().await?.snapshot(snapshot).await?;
                let (memory, host) = self.memory(&snapshot, memory && snapshot.kind.has_memory()).await?;
                found = memory;
                loader = host.as_ref().map(Loader::from).unwrap_or_default();
                Origin::Kept(Source::Snapshot(snapshot.id))
            }
        };
        let order = CloneOrder {
            origin,
            expected: call.expected,
            names,
            description: wish.description.clone(),
            memory,
            nics,
            start: wish.start,
            keep_identity: wish.keep_identity,
            found,
            loader,
        };
        self.order::<CloneVm>(call, order).await
    }
}
