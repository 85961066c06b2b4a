//! Deleting a machine with its snapshots. Clones and templates made of it stay whole: arrays see to that.

use async_trait::async_trait;
use keyframe_catalog::{Mode, Owner, Resource, Transaction};
use keyframe_model::agent::{Generation, JobId, SnapshotId, StopHow, VmId, VolumeRef};
use keyframe_model::{
    Activity, JobKind, Refusal, Rest, Snapshot, SnapshotEvent, SnapshotState, Vm, VmEvent, VmState, delete,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hold::{self, add_holders, check_generation, leave_vm, reason, take_vm, vm_event};
use super::snapshot_delete::{all_snapshots, batches, doomed_snapshots};
use super::step::{DeleteVolumes, Forget, Stop};
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Outcome, Step};
use crate::{Error, ErrorKind, Result};

/// A machine to be deleted.
pub(crate) struct VmDeleteOrder {
    pub(crate) vm: VmId,
    pub(crate) expected: Option<Generation>,
    /// Also if it runs.
    pub(crate) force: bool,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct VmDeletePlan {
    vm: VmId,
    name: String,
    generation: Generation,
    instants: Vec<SnapshotId>,
    volumes: Vec<VolumeRef>,
}

/// Deletes a machine.
pub(crate) struct VmDelete {
    pub(crate) agent: Agent,
}

/// What a deletion is about, and what stands in its way.
pub(crate) struct Deletion {
    pub(crate) vm: Vm,
    /// Children before their parents.
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) objections: Vec<Error>,
    /// Of the snapshots.
    locks: Vec<(Resource, Mode)>,
}

/// What deleting it would be about.
pub(crate) async fn preview(tx: &mut Transaction, order: &VmDeleteOrder) -> Result<Deletion> {
    let vm = tx.vm(order.vm).await?;
    let snapshots = doomed_snapshots(tx, vm.id, delete::Doomed::All).await?;
    let mut objections: Vec<Error> = unforced(&vm, order.force).err().into_iter().collect();
    objections.extend(check_generation(vm.name.as_str(), vm.generation, order.expected).err());
    objections.extend(vm.allows(Activity::Deleting).err().map(Error::from));
    add_holders(tx, &hold::locks(vm.id, Activity::Deleting), &mut objections).await?;
    let refuse =
        |refusal: Refusal| Error::new(refusal.kind.into(), format!("cannot delete {}: {}", vm.name, refusal.message));
    objections.extend(delete::objections(&snapshots).into_iter().map(refuse));
    let locks: Vec<_> = snapshots.iter().map(|s| (Resource::Snapshot(s.id), Mode::Exclusive)).collect();
    add_holders(tx, &locks, &mut objections).await?;
    Ok(Deletion { vm, snapshots, objections, locks })
}

/// Refuses to delete a machine that has a process, unless the caller means it.
fn unforced(vm: &Vm, force: bool) -> Result<()> {
    match vm.state {
        VmState::At { rest: Rest::Running | Rest::Paused { .. } } if !force => {
            let message = format!("cannot delete {}: it is {}; stop it first, or force it", vm.name, vm.state);
            Err(Error::new(ErrorKind::State, message))
        }
        VmState::At { .. } | VmState::Busy { .. } | VmState::Error { .. } | VmState::Gone => Ok(()),
    }
}

#[async_trait]
impl Kind for VmDelete {
    type Order = VmDeleteOrder;
    type Plan = VmDeletePlan;
    const KIND: JobKind = JobKind::VmDelete;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: VmDeleteOrder) -> Result<Begun<VmDeletePlan>> {
        let Deletion { mut snapshots, objections, locks, .. } = preview(tx, &order).await?;
        if let Some(objection) = objections.into_iter().next() {
            return Err(objection);
        }
        let vm = take_vm(tx, job, order.vm, order.expected, Activity::Deleting).await?;
        tx.lock(job, &locks).await?;
        // So that nobody locks one that is about to go. One that cannot be used stays what it is.
        for snapshot in snapshots.iter_mut().filter(|snapshot| snapshot.state == SnapshotState::Ready) {
            snapshot.state = snapshot.after(&SnapshotEvent::BeginDelete(job))?;
            tx.update_snapshot(snapshot).await?;
        }
        let owners = snapshots.iter().map(|s| Owner::Snapshot(s.id)).chain([Owner::Vm(vm.id)]);
        let volumes = tx.unreferenced_without(&owners.collect::<Vec<_>>()).await?;
        let instants = snapshots.iter().map(|snapshot| snapshot.id).collect();
        let (title, name) = (format!("delete {}", vm.name), vm.name.to_string());
        let plan = VmDeletePlan { vm: vm.id, name, generation: vm.generation, instants, volumes };
        Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot: None, template: None })
    }

    fn steps(&self, plan: &VmDeletePlan) -> Vec<Box<dyn Step>> {
        let agent = || self.agent.clone();
        let (vm, generation, name) = (plan.vm, plan.generation, plan.name.clone());
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        steps.push(Box::new(Stop {
            agent: agent(),
            vm,
            name,
            generation,
            how: StopHow::Hard,
            back: None,
            commits: true,
        }));
        // The volumes go with their snapshots; of the instants only memories and reports are left to delete.
        let instants: Vec<_> = plan.instants.iter().map(|&id| (id, Vec::new())).collect();
        steps.extend(batches(&self.agent, instants));
        if !plan.volumes.is_empty() {
            steps.push(Box::new(DeleteVolumes { agent: agent(), volumes: plan.volumes.clone(), clears: false }));
        }
        steps.push(Box::new(Forget { agent: agent(), vm, generation }));
        steps
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, VmDeletePlan>) -> Result<Value> {
        match job.outcome {
            Outcome::Done => {
                let vm = tx.vm(job.plan.vm).await?;
                vm.after(&VmEvent::Deleted)?;
                tx.delete_vm(vm.id, vm.generation).await?;
            }
            Outcome::Undone { .. } | Outcome::Broken { .. } => {
                // Of a machine that could not even be stopped nothing was deleted.
                let event = match job.outcome {
                    Outcome::Broken { cause, left } if job.done(0) => SnapshotEvent::Broke(reason(cause, left)),
                    Outcome::Done | Outcome::Undone { .. } | Outcome::Broken { .. } => SnapshotEvent::DeleteUndone,
                };
                for mut snapshot in all_snapshots(tx, job.plan.vm).await?.into_values() {
                    if matches!(snapshot.state, SnapshotState::Deleting { job: by } if by == job.id) {
                        snapshot.state = snapshot.after(&event)?;
                        tx.update_snapshot(&mut snapshot).await?;
                    }
                }
                let event = vm_event(job.outcome, Rest::Stopped);
                leave_vm(tx, job.plan.vm, event, |_| {}).await?;
            }
        }
        Ok(Value::Null)
    }
}
