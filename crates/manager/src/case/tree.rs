//! Applying and deleting: what changes a tree, and what a dry run says of it.

use std::collections::BTreeMap;

use keyframe_model::agent::{Bytes, HostInfo, MemoryState, Micros, SnapshotId, VmId};
use keyframe_model::apply::ApplyPlan;
use keyframe_model::memory::Loader;
use keyframe_model::{Hardware, Name, Snapshot, delete};

use crate::kind::apply::{ApplyOrder, SnapshotApply, preview};
use crate::kind::snapshot_delete::{SnapshotDelete, SnapshotDeleteOrder, doomed_snapshots};
use crate::request::{
    Apply, ApplyPlanView, Call, DeletePlanView, DiskChange, Outcome, PlanView, SnapshotDelete as DeleteWish,
    SnapshotName,
};
use crate::{Error, ErrorKind, Manager, Result, space};

/// How long the state given up is kept when nobody says: 7 days.
const KEEP: Micros = Micros(7 * 24 * 3600 * 1_000_000);

impl Manager {
    /// Takes its machine to it; a plan only, if `dry_run`.
    pub async fn apply_snapshot(&self, call: &Call, snapshot: SnapshotId, wish: Apply) -> Result<Outcome<PlanView>> {
        let said = ("apply-snapshot", snapshot, &wish);
        if let Some(job) = self.repeated(call, &said).await? {
            return Ok(Outcome::Job(job));
        }
        let snapshot = self.catalog.read().await?.snapshot(snapshot).await?;
        self.apply(call, &said, &snapshot, &wish).await
    }

    /// Takes a machine to the snapshot that its state descends from; a plan only, if `dry_run`.
    pub async fn revert_vm(&self, call: &Call, vm: VmId, wish: Apply) -> Result<Outcome<PlanView>> {
        let said = ("revert-vm", vm, &wish);
        if let Some(job) = self.repeated(call, &said).await? {
            return Ok(Outcome::Job(job));
        }
        let mut tx = self.catalog.read().await?;
        let vm = tx.vm(vm).await?;
        let Some(current) = vm.current else {
            let message = format!("{} has no snapshot to go back to", vm.name);
            return Err(Error::new(ErrorKind::State, message));
        };
        let snapshot = tx.snapshot(current).await?;
        drop(tx);
        self.apply(call, &said, &snapshot, &wish).await
    }

    async fn apply(
        &self,
        call: &Call,
        said: &impl serde::Serialize,
        snapshot: &Snapshot,
        wish: &Apply,
    ) -> Result<Outcome<PlanView>> {
        let keep_for = wish.keep_for.unwrap_or(KEEP);
        if keep_for.0 == 0 {
            let message = "a snapshot kept for no time is none; say discard_current to keep nothing";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let wants_memory = snapshot.kind.has_memory() && !wish.without_memory;
        let (memory, host) = self.memory(snapshot, wants_memory).await?;
        let order = ApplyOrder {
            vm: snapshot.vm,
            expected: call.expected,
            snapshot: snapshot.id,
            discard: wish.discard_current,
            keep_name: wish.keep_name.clone(),
            keep_memory: wish.keep_memory,
            keep_for,
            start: wish.start,
            without_memory: wish.without_memory,
            memory,
            most: self.max_snapshots,
            loader: host.as_ref().map(Loader::from).unwrap_or_default(),
        };
        if wish.dry_run {
            return Ok(Outcome::Done(PlanView::Apply(self.apply_preview(snapshot, &order).await?)));
        }
        Ok(Outcome::Job(self.order::<SnapshotApply>(call, said, order).await?))
    }

    /// A snapshot's memory as the host finds it, and the host, where it matters.
    pub(super) async fn memory(&self, snapshot: &Snapshot, wanted: bool) -> Result<(MemoryState, Option<HostInfo>)> {
        if !wanted {
            return Ok((MemoryState::Absent, None));
        }
        let probe = self.agent.probe_instant(snapshot.id, &[]).await?;
        Ok((probe.memory, Some(self.agent.host().await?)))
    }

    async fn apply_preview(&self, snapshot: &Snapshot, order: &ApplyOrder) -> Result<ApplyPlanView> {
        let mut tx = self.catalog.read().await?;
        let vm = tx.vm(snapshot.vm).await?;
        let (plan, objections) = preview(&mut tx, &vm, order).await?;
        drop(tx);
        let mut loses = plan.lost_memory;
        if plan.keep.is_none() {
            let heads = space::of_heads(&self.agent, vm.hardware.volumes()).await?;
            loses = loses + heads.iter().flatten().map(|space| space.unique).sum();
        }
        let keeps_until = plan.keep.as_ref().map(|_| order.keep_until());
        let hardware = differences(&vm.hardware, &plan.hardware);
        let ApplyPlan { keep, keep_memory, lost_memory, stop, disks, memory, ends, .. } = plan;
        let obstacles = objections.into_iter().map(|error| error.message).collect();
        let disks = disks.into_iter().map(|(id, name, fate)| DiskChange { id, name, fate }).collect();
        let snapshot = SnapshotName { id: snapshot.id, name: snapshot.name.clone() };
        Ok(ApplyPlanView {
            snapshot,
            keeps: keep,
            keeps_memory: keep_memory,
            keeps_until,
            loses,
            loses_memory: lost_memory,
            stops: stop,
            disks,
            memory,
            ends,
            hardware,
            obstacles,
        })
    }

    /// Deletes one, or its subtree; a plan only, if `dry_run`.
    pub async fn delete_snapshot(
        &self,
        call: &Call,
        snapshot: SnapshotId,
        wish: DeleteWish,
    ) -> Result<Outcome<PlanView>> {
        let said = ("delete-snapshot", snapshot, wish);
        if let Some(job) = self.repeated(call, &said).await? {
            return Ok(Outcome::Job(job));
        }
        let vm = self.catalog.read().await?.snapshot(snapshot).await?.vm;
        let doomed = if wish.subtree { delete::Doomed::Subtree(snapshot) } else { delete::Doomed::One(snapshot) };
        self.delete(call, &said, vm, doomed, wish.dry_run).await
    }

    /// Deletes all of a machine; a plan only, if `dry_run`.
    pub async fn delete_snapshots(&self, call: &Call, vm: VmId, dry_run: bool) -> Result<Outcome<PlanView>> {
        let said = ("delete-snapshots", vm, dry_run);
        if let Some(job) = self.repeated(call, &said).await? {
            return Ok(Outcome::Job(job));
        }
        self.delete(call, &said, vm, delete::Doomed::All, dry_run).await
    }

    async fn delete(
        &self,
        call: &Call,
        said: &impl serde::Serialize,
        vm: VmId,
        doomed: delete::Doomed,
        dry_run: bool,
    ) -> Result<Outcome<PlanView>> {
        if dry_run {
            return Ok(Outcome::Done(PlanView::Delete(self.delete_preview(vm, doomed).await?)));
        }
        let order = SnapshotDeleteOrder { vm, doomed, expected: call.expected };
        Ok(Outcome::Job(self.order::<SnapshotDelete>(call, said, order).await?))
    }

    async fn delete_preview(&self, vm: VmId, doomed: delete::Doomed) -> Result<DeletePlanView> {
        let mut tx = self.catalog.read().await?;
        let vm = tx.vm(vm).await?;
        let snapshots = doomed_snapshots(&mut tx, vm.id, doomed).await?;
        let owners: Vec<_> = snapshots.iter().map(|s| keyframe_catalog::Owner::Snapshot(s.id)).collect();
        let volumes = tx.unreferenced_without(&owners).await?;
        let tree = tx.tree(vm.id).await?;
        let removal = delete::plan(&tree, &snapshots, |volume| !volumes.contains(volume))?.removal;
        let names: BTreeMap<SnapshotId, Name> =
            tx.outline(vm.id).await?.into_iter().map(|line| (line.id, line.name)).collect();
        drop(tx);
        let named = |id: &SnapshotId| names.get(id).map(|name| SnapshotName { id: *id, name: name.clone() });
        let memory = snapshots.iter().map(space::stored).sum();
        let mut obstacles: Vec<String> = delete::objections(&snapshots).into_iter().map(|r| r.message).collect();
        if let keyframe_model::VmState::Busy { activity, job, .. } = &vm.state {
            obstacles.push(format!("{} is {}; wait for job {job}", vm.name, activity.participle()));
        }
        Ok(DeletePlanView {
            loses_memory: Bytes(0),
            removed: removal.removed.iter().filter_map(named).collect(),
            moved: removal.moved.iter().filter_map(|(id, _)| named(id)).collect(),
            current: removal.current.flatten().as_ref().and_then(named),
            would_free: space::would_free(&self.agent, &snapshots, &volumes).await? + memory,
            memory,
            volumes,
            obstacles,
        })
    }
}

/// What changes besides disks, for people.
fn differences(now: &Hardware, then: &Hardware) -> Vec<String> {
    let mut all = Vec::new();
    if now.cpus != then.cpus {
        all.push(format!("{} processors instead of {}", then.cpus, now.cpus));
    }
    if now.memory != then.memory {
        all.push(format!("{} bytes of memory instead of {}", then.memory, now.memory));
    }
    if now.nics != then.nics {
        all.push("other network interfaces".to_owned());
    }
    if now.direct_boot != then.direct_boot {
        all.push("another kernel from outside".to_owned());
    }
    all
}
