//! Applying and deleting: what changes a tree, and what a dry run says of it.

use std::collections::BTreeMap;

use keyframe_model::agent::{Bytes, Generation, HostInfo, MemoryState, Micros, SnapshotId, VmId};
use keyframe_model::apply::ApplyPlan;
use keyframe_model::memory::Loader;
use keyframe_model::{Hardware, JobKind, Name, Snapshot, delete};

use crate::kind::apply::{ApplyOrder, SnapshotApply, preview};
use crate::kind::snapshot_delete::{self, Deletion, SnapshotDelete, SnapshotDeleteOrder};
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
        self.admit(&call.caller)?;
        let snapshot = self.catalog.read().await?.snapshot(snapshot).await?;
        self.apply(call, &snapshot, &wish, (None, call.expected)).await
    }

    /// Takes a machine to the snapshot that its state descends from; a plan only, if `dry_run`.
    pub async fn revert_vm(&self, call: &Call, vm: VmId, wish: Apply) -> Result<Outcome<PlanView>> {
        self.admit(&call.caller)?;
        let mut tx = self.catalog.read().await?;
        let vm = tx.vm(vm).await?;
        let Some(current) = vm.current else {
            let message = format!("{} has no snapshot to go back to", vm.name);
            return Err(Error::new(ErrorKind::State, message));
        };
        let snapshot = tx.snapshot(current).await?;
        drop(tx);
        self.apply(call, &snapshot, &wish, (call.expected, None)).await
    }

    /// `expected` are the generations of machine and snapshot.
    async fn apply(
        &self,
        call: &Call,
        snapshot: &Snapshot,
        wish: &Apply,
        expected: (Option<Generation>, Option<Generation>),
    ) -> Result<Outcome<PlanView>> {
        wish.keep_name.as_ref().map_or(Ok(()), Name::check_new)?;
        let keep_for = wish.keep_for.unwrap_or(KEEP);
        if keep_for.0 == 0 {
            let message = "a snapshot kept for no time is none; say discard_current to keep nothing";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let wants_memory = snapshot.kind.has_memory() && !wish.without_memory;
        let (memory, host) = self.memory(snapshot, wants_memory).await?;
        let order = ApplyOrder {
            vm: snapshot.vm,
            expected: expected.0,
            snapshot: snapshot.id,
            expected_snapshot: expected.1,
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
        Ok(Outcome::Job(self.order::<SnapshotApply>(call, order).await?))
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
        let mut obstacles: Vec<String> =
            self.engine.room_for(JobKind::SnapshotApply).err().into_iter().map(text).collect();
        obstacles.extend(objections.into_iter().map(text));
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
        self.admit(&call.caller)?;
        let vm = self.catalog.read().await?.snapshot(snapshot).await?.vm;
        let doomed = if wish.subtree { delete::Doomed::Subtree(snapshot) } else { delete::Doomed::One(snapshot) };
        self.delete(call, vm, doomed, wish.dry_run).await
    }

    /// Deletes all of a machine; a plan only, if `dry_run`.
    pub async fn delete_snapshots(&self, call: &Call, vm: VmId, dry_run: bool) -> Result<Outcome<PlanView>> {
        self.admit(&call.caller)?;
        self.delete(call, vm, delete::Doomed::All, dry_run).await
    }

    async fn delete(&self, call: &Call, vm: VmId, doomed: delete::Doomed, dry_run: bool) -> Result<Outcome<PlanView>> {
        let order = SnapshotDeleteOrder { vm, doomed, expected: call.expected };
        if dry_run {
            return Ok(Outcome::Done(PlanView::Delete(self.delete_preview(&order).await?)));
        }
        Ok(Outcome::Job(self.order::<SnapshotDelete>(call, order).await?))
    }

    async fn delete_preview(&self, order: &SnapshotDeleteOrder) -> Result<DeletePlanView> {
        let mut tx = self.catalog.read().await?;
        let Deletion { vm, snapshots, objections, .. } = snapshot_delete::preview(&mut tx, order).await?;
        let owners: Vec<_> = snapshots.iter().map(|s| keyframe_catalog::Owner::Snapshot(s.id)).collect();
        let volumes = tx.unreferenced_without(&owners).await?;
        let tree = tx.tree(vm.id).await?;
        let removal = delete::plan(&tree, &snapshots, |volume| !volumes.contains(volume))?.removal;
        let names: BTreeMap<SnapshotId, Name> =
            tx.outline(vm.id).await?.into_iter().map(|line| (line.id, line.name)).collect();
        drop(tx);
        let named = |id: &SnapshotId| names.get(id).map(|name| SnapshotName { id: *id, name: name.clone() });
        let memory = snapshots.iter().map(space::stored).sum();
        Ok(DeletePlanView {
            loses_memory: Bytes(0),
            removed: removal.removed.iter().filter_map(named).collect(),
            moved: removal.moved.iter().filter_map(|(id, _)| named(id)).collect(),
            current_changes: removal.current.is_some(),
            current: removal.current.flatten().as_ref().and_then(named),
            would_free: space::would_free(&self.agent, &snapshots, &volumes).await? + memory,
            memory,
            volumes,
            obstacles: objections.into_iter().map(text).collect(),
        })
    }
}

/// What stands in the way, in the words of the refusal.
pub(super) fn text(objection: Error) -> String {
    objection.message
}

/// What changes besides what is on disks, for people.
fn differences(now: &Hardware, then: &Hardware) -> Vec<String> {
    let mut all = Vec::new();
    if now.cpus != then.cpus {
        all.push(format!("{} processors instead of {}", then.cpus, now.cpus));
    }
    if now.memory != then.memory {
        all.push(format!("{} bytes of memory instead of {}", then.memory, now.memory));
    }
    for disk in &then.disks {
        if let Some(size) = now.disks.iter().find(|of| of.id == disk.id).map(|of| of.size).filter(|&of| of != disk.size)
        {
            all.push(format!("{} bytes of disk {} instead of {size}", disk.size, disk.name));
        }
    }
    if now.nics != then.nics {
        all.push("other network interfaces".to_owned());
    }
    if now.direct_boot != then.direct_boot {
        all.push("another kernel from outside".to_owned());
    }
    all
}
