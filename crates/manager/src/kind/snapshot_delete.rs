//! Deleting one snapshot, a subtree, or all of a machine.
//!
//! The machine may run, and be started and stopped; only its tree and its list of disks stay what they are meanwhile. Children
//! of what goes move up, and so does the current pointer. A volume that only the deleted held goes as well.

use std::collections::BTreeMap;

use async_trait::async_trait;
use keyframe_catalog::{Mode, Owner, PageOf, Resource, SnapshotFilter, Transaction};
use keyframe_model::agent::{Generation, JobId, SnapshotId, VmId, VolumeRef};
use keyframe_model::{JobKind, Refusal, Snapshot, SnapshotEvent, Vm, VmState, delete};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hold::{add_holders, check_generation, reason};
use super::step::{DeleteInstants, DeleteVolumes};
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Outcome, Step};
use crate::{Error, ErrorKind, Result};

/// So many snapshots one step deletes.
const BATCH: usize = 64;

/// Snapshots to be deleted.
pub(crate) struct SnapshotDeleteOrder {
    pub(crate) vm: VmId,
    pub(crate) doomed: delete::Doomed,
    /// Of the one that is named, or of the machine if all go.
    pub(crate) expected: Option<Generation>,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotDeletePlan {
    vm: VmId,
    /// Children before their parents, each with the volumes that stay.
    instants: Vec<(SnapshotId, Vec<VolumeRef>)>,
    unreferenced: Vec<VolumeRef>,
}

/// Deletes snapshots.
pub(crate) struct SnapshotDelete {
    pub(crate) agent: Agent,
}

/// What a deletion is about, and what stands in its way.
pub(crate) struct Deletion {
    pub(crate) vm: Vm,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) objections: Vec<Error>,
    title: String,
    locks: Vec<(Resource, Mode)>,
}

/// What deleting these would be about.
pub(crate) async fn preview(tx: &mut Transaction, order: &SnapshotDeleteOrder) -> Result<Deletion> {
    let vm = tx.vm(order.vm).await?;
    let snapshots = doomed_snapshots(tx, vm.id, order.doomed).await?;
    let named = named_id(order.doomed).and_then(|id| snapshots.iter().find(|s| s.id == id));
    let title = match (named, order.doomed) {
        (Some(named), delete::Doomed::Subtree(_)) => {
            format!("delete snapshot {} of {} with all below it", named.name, vm.name)
        }
        (Some(named), _) => format!("delete snapshot {} of {}", named.name, vm.name),
        (None, _) => format!("delete all snapshots of {}", vm.name),
    };
    let mut objections = Vec::new();
    let (name, generation) = named.map_or((&vm.name, vm.generation), |named| (&named.name, named.generation));
    objections.extend(check_generation(name.as_str(), generation, order.expected).err());
    let refuse = |refusal: Refusal| Error::new(refusal.kind.into(), format!("cannot {title}: {}", refusal.message));
    objections.extend(delete::objections(&snapshots).into_iter().map(refuse));
    if let VmState::Busy { activity, job, .. } = &vm.state
        && activity.holds_tree()
    {
        let message = format!("cannot {title}: {} is {}; wait for job {job}", vm.name, activity.participle());
        objections.push(Error::new(ErrorKind::Busy, message));
    }
    let mut locks = vec![(Resource::Tree(vm.id), Mode::Exclusive)];
    locks.extend(snapshots.iter().map(|s| (Resource::Snapshot(s.id), Mode::Exclusive)));
    add_holders(tx, &locks, &mut objections).await?;
    Ok(Deletion { vm, snapshots, objections, title, locks })
}

/// The snapshots that are asked for, children before their parents.
pub(super) async fn doomed_snapshots(tx: &mut Transaction, vm: VmId, doomed: delete::Doomed) -> Result<Vec<Snapshot>> {
    let tree = tx.tree(vm).await?;
    let ids = delete::doomed(&tree, doomed)?;
    if let [one] = ids[..] {
        return Ok(vec![tx.snapshot(one).await?]);
    }
    let mut all = all_snapshots(tx, vm).await?;
    Ok(ids.iter().filter_map(|id| all.remove(id)).collect())
}

/// All snapshots of a machine.
pub(crate) async fn all_snapshots(tx: &mut Transaction, vm: VmId) -> Result<BTreeMap<SnapshotId, Snapshot>> {
    let filter = SnapshotFilter { vm: Some(vm), ..SnapshotFilter::default() };
    let page = tx.snapshots(&filter, &PageOf::all()).await?;
    Ok(page.items.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect())
}

/// Steps that delete instants, a batch each.
pub(crate) fn batches(agent: &Agent, instants: Vec<(SnapshotId, Vec<VolumeRef>)>) -> Vec<Box<dyn Step>> {
    let total = instants.len() as u64;
    let batch = |(index, some): (usize, &[(SnapshotId, Vec<VolumeRef>)])| {
        let before = (index * BATCH) as u64;
        let step = DeleteInstants { agent: agent.clone(), instants: some.to_vec(), total, before, clears: false };
        Box::new(step) as Box<dyn Step>
    };
    instants.chunks(BATCH).enumerate().map(batch).collect()
}

#[async_trait]
impl Kind for SnapshotDelete {
    type Order = SnapshotDeleteOrder;
    type Plan = SnapshotDeletePlan;
    const KIND: JobKind = JobKind::SnapshotDelete;

    async fn begin(
        &self,
        tx: &mut Transaction,
        job: JobId,
        order: SnapshotDeleteOrder,
    ) -> Result<Begun<SnapshotDeletePlan>> {
        let Deletion { vm, mut snapshots, objections, title, locks } = preview(tx, &order).await?;
        if let Some(objection) = objections.into_iter().next() {
            return Err(objection);
        }
        tx.lock(job, &locks).await?;
        for snapshot in &mut snapshots {
            snapshot.state = snapshot.after(&SnapshotEvent::BeginDelete(job))?;
            tx.update_snapshot(snapshot).await?;
        }
        let owners: Vec<Owner> = snapshots.iter().map(|snapshot| Owner::Snapshot(snapshot.id)).collect();
        let unreferenced = tx.unreferenced_without(&owners).await?;
        let mut parts = delete::parts(&snapshots, &unreferenced);
        let instants = snapshots.iter().map(|s| (s.id, parts.remove(&s.id).unwrap_or_default())).collect();
        let snapshot = named_id(order.doomed);
        let plan = SnapshotDeletePlan { vm: vm.id, instants, unreferenced };
        Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot, template: None })
    }

    fn steps(&self, plan: &SnapshotDeletePlan) -> Vec<Box<dyn Step>> {
        let mut steps = batches(&self.agent, plan.instants.clone());
        if !plan.unreferenced.is_empty() {
            let (agent, volumes) = (self.agent.clone(), plan.unreferenced.clone());
            steps.push(Box::new(DeleteVolumes { agent, volumes, clears: false }));
        }
        steps
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, SnapshotDeletePlan>) -> Result<Value> {
        let ids: Vec<SnapshotId> = job.plan.instants.iter().map(|(id, _)| *id).collect();
        match job.outcome {
            Outcome::Done => {
                let removal = tx.tree(job.plan.vm).await?.remove(&ids)?;
                tx.move_snapshots(&removal.moved).await?;
                if let Some(current) = removal.current {
                    let mut vm = tx.vm(job.plan.vm).await?;
                    tx.set_current(&mut vm, current).await?;
                }
                tx.delete_snapshots(job.plan.vm, &ids).await?;
            }
            Outcome::Undone { .. } => {
                change(tx, &ids, &SnapshotEvent::DeleteUndone).await?;
            }
            Outcome::Broken { cause, left } => {
                change(tx, &ids, &SnapshotEvent::Broke(reason(cause, left))).await?;
            }
        }
        Ok(Value::Null)
    }
}

fn named_id(doomed: delete::Doomed) -> Option<SnapshotId> {
    match doomed {
        delete::Doomed::One(id) | delete::Doomed::Subtree(id) => Some(id),
        delete::Doomed::All => None,
    }
}

async fn change(tx: &mut Transaction, ids: &[SnapshotId], event: &SnapshotEvent) -> Result<()> {
    for &id in ids {
        let mut snapshot = tx.snapshot(id).await?;
        snapshot.state = snapshot.after(event)?;
        tx.update_snapshot(&mut snapshot).await?;
    }
    Ok(())
}
