//! What disks and memories hold before an order, and what they must hold when it has ended. No guest writes in between but one
//! whose memory is captured while it runs, so nothing else changes but by the order.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

use keyframe_agent::hypervisor::fake::Memory;
use keyframe_model::agent::{DiskId, SnapshotId, VmId, VolumeRef};
use keyframe_model::{Disk, JobState, Rest, Snapshot, SnapshotKind, SnapshotOrigin, SnapshotState, Vm, VmState};

use super::chance::{Checked, Found, World};
use crate::request::CloneSource;

/// What an order does to contents, if it succeeds.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Nothing,
    /// Whatever the disks of this machine hold then.
    Changes(VmId),
    /// This machine's guest runs on while its memory is stored.
    Captures(VmId),
    Applies {
        vm: VmId,
        snapshot: SnapshotId,
    },
    Copies {
        source: CloneSource,
        name: String,
        captures: Option<VmId>,
    },
}

/// What a machine had.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Held {
    disks: Vec<(DiskId, u64)>,
    memory: Option<Memory>,
}

/// What all machines had, and which snapshots there were.
pub(super) struct Before {
    vms: HashMap<VmId, Held>,
    snapshots: HashSet<SnapshotId>,
}

impl World {
    /// A hash of what a disk holds, up to the end that everybody knows of: one that could not be enlarged for a guest may go on.
    fn content(&self, disk: &Disk, snapshot: Option<SnapshotId>) -> u64 {
        let VolumeRef { array, volume } = &disk.volume;
        let mut bytes = self.site.with_agent(|agent| agent.array(array).content(volume, snapshot)).unwrap();
        bytes.truncate(usize::try_from(disk.size.0).unwrap());
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        hasher.finish()
    }

    fn held(&self, vm: &Vm) -> Held {
        let disks = vm.hardware.disks.iter().map(|disk| (disk.id, self.content(disk, None)));
        Held { disks: disks.collect(), memory: self.site.fake.machine(vm.id).map(|machine| machine.guest) }
    }

    /// Machines in error are left out: they may have lost anything.
    pub(super) fn before(&self, found: &Found) -> Before {
        let sound = found.vms.iter().filter(|vm| matches!(vm.state, VmState::At { .. }));
        let vms = sound.map(|vm| (vm.id, self.held(vm))).collect();
        Before { vms, snapshots: found.snapshots.iter().map(|snapshot| snapshot.id).collect() }
    }

    /// `effects` are those of the orders that have succeeded.
    pub(super) fn check_contents(&mut self, before: &Before, found: &Found, effects: &[Effect]) -> Checked {
        let touches = |vm: VmId| effects.iter().filter(move |effect| effect.touches(vm)).count();
        for vm in found.vms.iter().filter(|vm| matches!(vm.state, VmState::At { .. })) {
            let Some(had) = before.vms.get(&vm.id).filter(|_| touches(vm.id) == 0) else { continue };
            let has = self.held(vm);
            for (id, content) in &has.disks {
                let then = had.disks.iter().find(|(other, _)| other == id);
                if then.is_some_and(|(_, then)| then != content) {
                    return Err(format!("disk {id} of {} has changed", vm.name));
                }
            }
        }
        for snapshot in found.snapshots.iter().filter(|one| one.state == SnapshotState::Ready) {
            let Some(had) = before.vms.get(&snapshot.vm).filter(|_| !before.snapshots.contains(&snapshot.id)) else {
                continue;
            };
            // What an apply gives up is what there was; any other instant may have been taken after another order.
            let given_up = matches!(snapshot.origin, SnapshotOrigin::BeforeApply { .. });
            if touches(snapshot.vm) > usize::from(given_up) {
                continue;
            }
            let of = found.vms.iter().find(|vm| vm.id == snapshot.vm);
            self.is_of(snapshot, had)
                .map_err(|why| format!("snapshot {} of {:?}: {why}", snapshot.name, of.map(|vm| &vm.name)))?;
            if let Some(memory) = had.memory.filter(|_| snapshot.kind == SnapshotKind::DiskAndMemory) {
                self.memories.insert(snapshot.id, memory);
            }
        }
        for effect in effects {
            match effect {
                Effect::Nothing | Effect::Changes(_) | Effect::Captures(_) => {}
                Effect::Applies { vm, snapshot } if touches(*vm) == 1 => self.is_applied(found, *vm, *snapshot)?,
                Effect::Applies { .. } => {}
                Effect::Copies { source, name, .. } => self.is_copied(before, found, source, name, &touches)?,
            }
        }
        Ok(())
    }

    /// Whether a new snapshot holds what its machine had.
    fn is_of(&self, snapshot: &Snapshot, had: &Held) -> Checked {
        for disk in &snapshot.hardware.disks {
            let holds = self.content(disk, Some(snapshot.id));
            let then = had.disks.iter().find(|(id, _)| *id == disk.id);
            if then.is_some_and(|(_, then)| *then != holds) {
                return Err(format!("disk {} is not what its machine had", disk.name));
            }
        }
        Ok(())
    }

    /// What the disks of a snapshot hold, in their order.
    fn contents_of(&self, snapshot: &Snapshot) -> Vec<u64> {
        snapshot.hardware.disks.iter().map(|disk| self.content(disk, Some(snapshot.id))).collect()
    }

    fn is_applied(&self, found: &Found, vm: VmId, snapshot: SnapshotId) -> Checked {
        let vm = found.vms.iter().find(|one| one.id == vm).ok_or("a machine is gone after an apply")?;
        // Somebody may have deleted it since.
        let Some(snapshot) = found.snapshots.iter().find(|one| one.id == snapshot) else { return Ok(()) };
        let has = self.held(vm);
        let now: Vec<u64> = has.disks.iter().map(|(_, content)| *content).collect();
        if now != self.contents_of(snapshot) {
            return Err(format!("{} has not what the applied {} holds", vm.name, snapshot.name));
        }
        self.has_memory(vm, &has, snapshot)
    }

    /// Whether a machine that goes on from a snapshot is where that was.
    fn has_memory(&self, vm: &Vm, has: &Held, snapshot: &Snapshot) -> Checked {
        let runs = vm.state == VmState::At { rest: Rest::Running };
        let Some(then) = self.memories.get(&snapshot.id).filter(|_| runs) else { return Ok(()) };
        if has.memory == Some(*then) {
            return Ok(());
        }
        Err(format!("{} is at {:?}, {} was taken at {then:?}", vm.name, has.memory, snapshot.name))
    }

    fn is_copied(
        &self,
        before: &Before,
        found: &Found,
        source: &CloneSource,
        name: &str,
        touches: &impl Fn(VmId) -> usize,
    ) -> Checked {
        let Some(copy) = found.vms.iter().find(|vm| vm.name.as_str() == name) else { return Ok(()) };
        let has = self.held(copy);
        let now: Vec<u64> = has.disks.iter().map(|(_, content)| *content).collect();
        match source {
            CloneSource::Vm { vm } if touches(*vm) == 0 => {
                let Some(had) = before.vms.get(vm) else { return Ok(()) };
                let then: Vec<u64> = had.disks.iter().map(|(_, content)| *content).collect();
                let runs = copy.state == VmState::At { rest: Rest::Running };
                if then == now && (!runs || has.memory == had.memory) {
                    return Ok(());
                }
                Err(format!("{name} is not what {source:?} was: {has:?}, {had:?}"))
            }
            CloneSource::Snapshot { snapshot } => {
                let snapshot = found.snapshots.iter().find(|one| one.id == *snapshot);
                let Some(snapshot) = snapshot else { return Ok(()) };
                if now != self.contents_of(snapshot) {
                    return Err(format!("{name} has not what {} holds", snapshot.name));
                }
                self.has_memory(copy, &has, snapshot)
            }
            CloneSource::Vm { .. } | CloneSource::Template { .. } => Ok(()),
        }
    }
}

impl Effect {
    /// What is left of it when its job has ended so. The guest has run on, whatever became of its capture.
    pub(super) fn after(self, state: JobState) -> Option<Effect> {
        let captures = matches!(self, Effect::Captures(_) | Effect::Copies { captures: Some(_), .. });
        (captures || state == JobState::Succeeded).then_some(self)
    }

    /// Whether it changes what the disks of this machine hold.
    fn touches(&self, of: VmId) -> bool {
        match self {
            Effect::Changes(vm) | Effect::Captures(vm) | Effect::Applies { vm, .. } => *vm == of,
            Effect::Copies { captures, .. } => *captures == Some(of),
            Effect::Nothing => false,
        }
    }
}
