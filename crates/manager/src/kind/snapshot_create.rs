//! Taking a snapshot. The guest runs on; the machine is busy only so that nobody changes its disks or its tree meanwhile.

use async_trait::async_trait;
use keyframe_catalog::Transaction;
use keyframe_model::agent::{Bytes, Generation, JobId, Micros, Quiesce, SnapshotId, TakeInstant, Timestamp, VmId};
use keyframe_model::{
    Activity, JobKind, Name, Rest, Snapshot, SnapshotEvent, SnapshotKind, SnapshotOrigin, SnapshotState, Tag, Vm,
    numbered,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hold::{leave_vm, of_snapshot, reason, rest_before, take_vm, vm_event};
use super::step::{Instant, outputs, report};
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Outcome, Step};
use crate::{Error, ErrorKind, Result};

/// A snapshot to be taken.
pub(crate) struct SnapshotOrder {
    pub(crate) vm: VmId,
    pub(crate) expected: Option<Generation>,
    pub(crate) name: Option<Name>,
    pub(crate) description: String,
    pub(crate) tags: Vec<Tag>,
    pub(crate) kind: SnapshotKind,
    pub(crate) quiesce: Quiesce,
    pub(crate) deadline: Micros,
    pub(crate) locked: bool,
    /// Most that a machine may have.
    pub(crate) most: u32,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotPlan {
    vm: VmId,
    snapshot: SnapshotId,
    title: String,
    before: Rest,
    wish: TakeInstant,
    memory: Option<Bytes>,
}

/// Takes a snapshot.
pub(crate) struct SnapshotCreate {
    pub(crate) agent: Agent,
}

/// The names that a machine's snapshots have.
pub(crate) async fn names(tx: &mut Transaction, vm: VmId) -> Result<std::collections::BTreeSet<Name>> {
    Ok(tx.outline(vm).await?.into_iter().map(|line| line.name).collect())
}

/// Refuses one more than a machine may have.
pub(crate) async fn room(tx: &mut Transaction, vm: &Vm, most: u32) -> Result<()> {
    if tx.count_snapshots(vm.id).await? < u64::from(most) {
        return Ok(());
    }
    let message = format!("{} has {most} snapshots, which is the most; delete some first", vm.name);
    Err(Error::new(ErrorKind::Limit, message))
}

/// What a host is asked for: all disks of the machine, at one instant.
pub(crate) fn instant_of(vm: &Vm, memory: bool, quiesce: Quiesce, deadline: Micros) -> TakeInstant {
    TakeInstant { vm: vm.id, generation: vm.generation, volumes: vm.hardware.volumes(), memory, quiesce, deadline }
}

#[async_trait]
impl Kind for SnapshotCreate {
    type Order = SnapshotOrder;
    type Plan = SnapshotPlan;
    const KIND: JobKind = JobKind::SnapshotCreate;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: SnapshotOrder) -> Result<Begun<SnapshotPlan>> {
        let vm = take_vm(tx, job, order.vm, order.expected, Activity::Snapshotting).await?;
        room(tx, &vm, order.most).await?;
        let before = rest_before(&vm);
        if before == Rest::Stopped && order.kind.has_memory() {
            let message = format!("{} is stopped, so it has no memory; snapshot its disks only, or start it", vm.name);
            return Err(Error::new(ErrorKind::State, message));
        }
        if order.quiesce == Quiesce::Required && order.kind.has_memory() {
            let message = format!(
                "a snapshot of {} with memory cannot be quiesced: its file systems would be frozen in the memory; \
                 take it without memory, or without quiescing",
                vm.name
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        // What does not run has nothing to freeze: its file systems are as clean as it left them.
        let quiesce = if before == Rest::Stopped { Quiesce::No } else { order.quiesce };
        let name = match order.name {
            Some(name) => name,
            None => numbered("snapshot", &names(tx, vm.id).await?),
        };
        let snapshot = Snapshot {
            id: SnapshotId::new(),
            vm: vm.id,
            name,
            description: order.description,
            tags: order.tags,
            generation: Generation(1),
            state: SnapshotState::Creating { job },
            kind: order.kind,
            origin: SnapshotOrigin::User,
            parent: vm.current,
            created: Timestamp::now(),
            expires: None,
            locked: order.locked,
            quiesce: order.quiesce,
            hardware: vm.hardware.clone(),
            report: None,
            verification: None,
        };
        tx.insert_snapshot(&snapshot).await.map_err(of_snapshot(&vm, &snapshot.name))?;
        let title = format!("snapshot {} as {}", vm.name, snapshot.name);
        let plan = SnapshotPlan {
            vm: vm.id,
            snapshot: snapshot.id,
            title: format!("snapshot {} of {}", snapshot.name, vm.name),
            before,
            wish: instant_of(&vm, order.kind.has_memory(), quiesce, order.deadline),
            memory: order.kind.has_memory().then_some(vm.hardware.memory),
        };
        Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot: Some(snapshot.id), template: None })
    }

    fn steps(&self, plan: &SnapshotPlan) -> Vec<Box<dyn Step>> {
        vec![Box::new(Instant {
            agent: self.agent.clone(),
            name: plan.title.clone(),
            snapshot: plan.snapshot,
            wish: plan.wish.clone(),
            memory: plan.memory,
            precious: false,
        })]
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, SnapshotPlan>) -> Result<Value> {
        let plan = job.plan;
        let mut snapshot = tx.snapshot(plan.snapshot).await?;
        let report = report(&outputs(job.outputs, 1));
        let mut event = vm_event(job.outcome, plan.before);
        match job.outcome {
            Outcome::Done => {
                snapshot.state = snapshot.after(&SnapshotEvent::Taken)?;
                snapshot.report = report;
                tx.update_snapshot(&mut snapshot).await?;
            }
            Outcome::Undone { .. } => {
                tx.delete_snapshots(plan.vm, &[plan.snapshot]).await?;
            }
            Outcome::Broken { cause, left } => {
                // The machine itself is as it was: only the snapshot is neither there nor gone.
                event = keyframe_model::VmEvent::Undone;
                snapshot.state = snapshot.after(&SnapshotEvent::Broke(reason(cause, left)))?;
                tx.update_snapshot(&mut snapshot).await?;
            }
        }
        let taken = matches!(job.outcome, Outcome::Done);
        leave_vm(tx, plan.vm, event, |vm| {
            if taken {
                vm.current = Some(plan.snapshot);
            }
        })
        .await?;
        Ok(Value::Null)
    }
}
