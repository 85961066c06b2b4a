//! What applying a snapshot to its machine does.
//!
//! The machine's disks and hardware become what they were; the other snapshots stay as they are. What is given up is kept
//! as an automatic snapshot unless the caller does not want it. A disk that was taken out since comes back; one that came
//! since is taken out, and stays where it is for the snapshots that hold it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::agent::{Bytes, DiskId, MemoryState, VolumeRef};
use crate::memory::Loader;
use crate::vm::{Activity, Hardware, Rest, Vm, VmState};
use crate::{Name, Refusal, RefusalKind, Snapshot, name};

/// What is asked for, and what has to be known of the world to say what follows.
#[derive(Clone, Copy, Debug)]
pub struct ApplyWish<'a> {
    /// The machine.
    pub vm: &'a Vm,
    /// Its snapshot.
    pub snapshot: &'a Snapshot,
    /// Do not keep the state given up.
    pub discard: bool,
    /// Keep the memory given up with it, if there is any.
    pub keep_memory: bool,
    /// A name for the automatic snapshot.
    pub keep_name: Option<&'a Name>,
    /// Names that the machine's snapshots have.
    pub taken: &'a BTreeSet<Name>,
    /// Volumes that a snapshot of the machine holds.
    pub held: &'a BTreeSet<VolumeRef>,
    /// Start the machine if it would not run by itself.
    pub start: bool,
    /// Leave the memory aside.
    pub without_memory: bool,
    /// The memory image as the host finds it.
    pub memory: &'a MemoryState,
    /// What the host would load it with.
    pub loader: &'a Loader,
    /// What the guest is to read as its generation id.
    pub generation_id: Uuid,
}

/// What an apply does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ApplyPlan {
    /// The name of the automatic snapshot, if there is to be one.
    pub keep: Option<Name>,
    /// The memory given up is in it, so that going back goes on where the guest was.
    #[serde(default)]
    pub keep_memory: bool,
    /// The memory of a guest that is lost.
    #[serde(default)]
    pub lost_memory: Bytes,
    /// The machine has a process, which is ended.
    pub stop: bool,
    /// What becomes of each disk: those of the snapshot, then those that go.
    pub disks: Vec<(DiskId, Name, DiskFate)>,
    /// What becomes of the memory.
    pub memory: MemoryUse,
    /// What the machine does afterwards.
    pub ends: Rest,
    /// What it consists of afterwards.
    pub hardware: Hardware,
    /// Volumes that nothing refers to afterwards.
    pub unreferenced: Vec<VolumeRef>,
}

/// What happens to a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFate {
    /// Its content goes to what it was.
    Reverted,
    /// It is not in the machine now, and comes back with what it held.
    ComesBack,
    /// It was not in the machine then: it is taken out, and kept for the snapshots that hold it.
    TakenOut,
    /// It was not in the machine then, and no snapshot holds it: it is deleted.
    Deleted,
}

/// What becomes of a snapshot's memory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "memory", rename_all = "kebab-case")]
pub enum MemoryUse {
    /// It has none.
    Absent,
    /// The guest goes on where it was.
    Used,
    /// It is left aside, as asked.
    LeftAside,
    /// It cannot be used; the disks can.
    Unusable {
        /// Why, for people.
        reason: String,
    },
}

/// What an apply will do, whether or not it may. [`ApplyPlan::objections`] says what stands in its way.
pub fn plan(wish: &ApplyWish<'_>) -> ApplyPlan {
    let memory = memory_use(wish.snapshot, wish.memory, wish.loader, wish.without_memory);
    let keep = (!wish.discard).then(|| match wish.keep_name {
        Some(name) => name.clone(),
        None => name::numbered(&format!("before-{}", wish.snapshot.name), wish.taken),
    });
    let now: BTreeSet<DiskId> = wish.vm.hardware.disks.iter().map(|disk| disk.id).collect();
    let then: BTreeSet<DiskId> = wish.snapshot.hardware.disks.iter().map(|disk| disk.id).collect();
    let mut disks = Vec::new();
    for disk in &wish.snapshot.hardware.disks {
        let fate = if now.contains(&disk.id) { DiskFate::Reverted } else { DiskFate::ComesBack };
        disks.push((disk.id, disk.name.clone(), fate));
    }
    let mut unreferenced = Vec::new();
    for disk in wish.vm.hardware.disks.iter().filter(|disk| !then.contains(&disk.id)) {
        let kept = keep.is_some() || wish.held.contains(&disk.volume);
        if !kept {
            unreferenced.push(disk.volume.clone());
        }
        disks.push((disk.id, disk.name.clone(), if kept { DiskFate::TakenOut } else { DiskFate::Deleted }));
    }
    let runs = memory == MemoryUse::Used || wish.start;
    let has_memory = matches!(wish.vm.state, VmState::At { rest: Rest::Running | Rest::Paused { .. } });
    let keep_memory = has_memory && keep.is_some() && wish.keep_memory;
    ApplyPlan {
        keep,
        keep_memory,
        lost_memory: if has_memory && !keep_memory { wish.vm.hardware.memory } else { Bytes(0) },
        stop: !matches!(wish.vm.state, VmState::At { rest: Rest::Stopped }),
        disks,
        memory,
        ends: if runs { Rest::Running } else { Rest::Stopped },
        hardware: Hardware { generation_id: wish.generation_id, ..wish.snapshot.hardware.clone() },
        unreferenced,
    }
}

/// Whether the memory of a snapshot can be used on a host, and is to be.
pub fn memory_use(snapshot: &Snapshot, found: &MemoryState, loader: &Loader, without: bool) -> MemoryUse {
    if !snapshot.kind.has_memory() {
        return MemoryUse::Absent;
    }
    if without {
        return MemoryUse::LeftAside;
    }
    let unusable = |reason: String| MemoryUse::Unusable { reason };
    match found {
        MemoryState::Absent => unusable("its memory image is lost".to_owned()),
        MemoryState::Writing { .. } => unusable("its memory image is not whole".to_owned()),
        MemoryState::Damaged { reason } => unusable(format!("its memory image cannot be used: {reason}")),
        MemoryState::Ready(info) => loader.objection(info).map_or(MemoryUse::Used, unusable),
    }
}

impl ApplyPlan {
    /// All that stands in the way, with the way out.
    pub fn objections(&self, wish: &ApplyWish<'_>) -> Vec<Refusal> {
        let mut all = Vec::new();
        all.extend(wish.vm.allows(Activity::Applying).err());
        all.extend(wish.snapshot.usable().err());
        if wish.snapshot.vm != wish.vm.id {
            let message = format!("snapshot {} is not of {}; clone it instead", wish.snapshot.name, wish.vm.name);
            all.push(Refusal::new(RefusalKind::Invalid, message));
        }
        if let MemoryUse::Unusable { reason } = &self.memory {
            let snapshot = &wish.snapshot.name;
            let message = format!(
                "cannot apply {snapshot} with its memory: {reason}; its disks can be applied without memory (--without-memory)"
            );
            all.push(Refusal::new(RefusalKind::State, message));
        }
        if let Some(name) = wish.keep_name.filter(|name| !wish.discard && wish.taken.contains(name)) {
            let message = format!("{} has a snapshot {name}; choose another name for the state given up", wish.vm.name);
            all.push(Refusal::new(RefusalKind::Taken, message));
        }
        all
    }
}
