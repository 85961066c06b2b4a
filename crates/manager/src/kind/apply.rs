//! Applying a snapshot to its machine.
//!
//! ```text
//!  pause ─► keep (an instant of what is given up) ─► stop ─► revert every disk ─► start ─► clock, store ─┬─► done
//!    ▲          ▲                                     ▲           ▲                 ▲                     └─► delete what nobody
//!    └──────────┴─── undone in the opposite order ────┴───────────┴─────────────────┘                         needs now
//! ```
//! Before a guest is given up the host is asked whether it can start what comes instead. The guest stands still from before the
//! instant, so nothing that it wrote is lost between it and the stop. The instant is taken in any case, so that a failure on the
//! way takes everything back; if the caller wants what is given up discarded, it is deleted at the end. Unless the caller says
//! otherwise the memory of a guest is in it, so that the way back goes on where the guest was; without it the guest starts anew,
//! and a notice on machine and job says so. A machine in error is stopped first, whatever it does.
//!
//! A guest whose memory is to be kept is not stopped but set aside, and its memory is stored when what comes instead runs. Nobody
//! waits for that, nor for the agent of a guest that came from memory to set its clock: the machine is let go of before, and only
//! its tree is held on to.

use std::collections::BTreeSet;

use async_trait::async_trait;
use keyframe_catalog::{Mode, Resource, Transaction};
use keyframe_model::agent::{
    Bytes, Generation, InstantReport, JobId, MemoryState, Micros, Power, Quiesce, SnapshotId, StartFrom, StartVm,
    StopHow, TakeInstant, Timestamp, VmId, VolumeRef,
};
use keyframe_model::apply::{ApplyPlan, ApplyWish, DiskFate, MemoryUse, plan};
use keyframe_model::memory::Loader;
use keyframe_model::{
    Activity, JobKind, Name, Notice, Rest, Snapshot, SnapshotEvent, SnapshotKind, SnapshotOrigin, SnapshotState, Vm,
    VmEvent, VmState, numbered,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::hold::{
    PAUSED, add_holders, check_generation, hold_snapshot, holds_vm, leave_vm, locks, rest_of, take_vm, vm_event,
};
use super::snapshot_create::{instant_of, names, room};
use super::step::{
    Check, DeleteInstants, DeleteVolumes, GiveUp, Instant, KeepMemory, Output, Pause, Revert, SetClock, Start, Stop,
    lost, notes, outputs, power, report,
};
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Outcome, Step, named};
use crate::{Error, Result};

/// The longest that the state given up may take to be kept, besides its memory.
const HOLD: Micros = Micros(5_000_000);

/// A snapshot to be applied.
pub(crate) struct ApplyOrder {
    pub(crate) vm: VmId,
    /// Of the machine.
    pub(crate) expected: Option<Generation>,
    pub(crate) snapshot: SnapshotId,
    /// Of the snapshot.
    pub(crate) expected_snapshot: Option<Generation>,
    pub(crate) discard: bool,
    pub(crate) keep_name: Option<Name>,
    pub(crate) keep_memory: bool,
    pub(crate) keep_for: Micros,
    pub(crate) start: bool,
    pub(crate) without_memory: bool,
    /// What the host says.
    pub(crate) memory: MemoryState,
    pub(crate) loader: Loader,
    /// Most snapshots that the machine may have.
    pub(crate) most: u32,
}

impl ApplyOrder {
    /// When what is kept goes by itself, if it is ordered now.
    pub(crate) fn keep_until(&self) -> Timestamp {
        Timestamp(Timestamp::now().0.saturating_add_unsigned(self.keep_for.0))
    }
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct ApplyJob {
    vm: VmId,
    name: Name,
    generation: Generation,
    snapshot: SnapshotId,
    snapshot_name: Name,
    plan: ApplyPlan,
    /// What it did before; absent if it was in error.
    before: Option<Rest>,
    /// The instant of what is given up.
    keep: SnapshotId,
    instant: TakeInstant,
    keep_memory: Option<Bytes>,
    /// How the machine of before is started again, standing still.
    back: StartVm,
    /// Those that were in the machine, and those that come back.
    reverts: Vec<(VolumeRef, Option<SnapshotId>)>,
    start: Option<StartVm>,
    /// The host is asked first whether it can start it: there is a guest to lose.
    #[serde(default)]
    checks: bool,
    /// What is started comes from memory, and so its clock is of then.
    #[serde(default)]
    sets_clock: bool,
}

impl ApplyJob {
    /// No instant is taken: a machine in error may have no disks to take one of, and nobody wants it.
    fn blind(&self) -> bool {
        self.before.is_none() && self.plan.keep.is_none()
    }

    /// The guest runs, or its host may let it go on at any time.
    fn pauses(&self) -> bool {
        matches!(self.before, Some(Rest::Running | Rest::Paused { .. })) && self.before != Some(PAUSED)
    }

    /// The step after which the machine is let go of, if there is more to do that nobody is to wait for.
    fn lets_go_after(&self) -> Option<usize> {
        let first = match self.before {
            // The instant, the giving up.
            Some(Rest::Running | Rest::Paused { .. }) => usize::from(self.checks) + usize::from(self.pauses()) + 2,
            Some(Rest::Stopped) => 1,
            None => 1 + usize::from(!self.blind()),
        };
        // The disks, and the start.
        (self.keep_memory.is_some() || self.sets_clock).then_some(first + usize::from(self.start.is_some()))
    }

    /// What the machine has become, once whatever was to be started is.
    async fn leave(&self, tx: &mut Transaction, power: Option<Power>) -> Result<()> {
        let rest = match (&self.start, power) {
            (Some(_), Some(power)) => rest_of(&power),
            (Some(_) | None, _) => self.plan.ends,
        };
        leave_vm(tx, self.vm, VmEvent::Finished(rest), |vm| {
            vm.hardware = self.plan.hardware.clone();
            vm.current = Some(self.snapshot);
        })
        .await
    }

    /// A guest that is stopped does not come back as it was.
    fn cuts_off(&self) -> bool {
        matches!(self.before, Some(Rest::Running | Rest::Paused { .. })) && self.back.from == StartFrom::Cold
    }
}

/// Applies a snapshot.
pub(crate) struct SnapshotApply {
    pub(crate) agent: Agent,
}

/// What an apply would do, and what stands in its way.
pub(crate) async fn preview(tx: &mut Transaction, vm: &Vm, order: &ApplyOrder) -> Result<(ApplyPlan, Vec<Error>)> {
    let snapshot = tx.snapshot(order.snapshot).await?;
    let taken = names(tx, vm.id).await?;
    let held: BTreeSet<VolumeRef> = tx.snapshotted_volumes(vm.id).await?.into_iter().map(|(of, ..)| of).collect();
    let wish = ApplyWish {
        vm,
        snapshot: &snapshot,
        discard: order.discard,
        keep_memory: order.keep_memory,
        keep_name: order.keep_name.as_ref(),
        taken: &taken,
        held: &held,
        start: order.start,
        without_memory: order.without_memory,
        memory: &order.memory,
        loader: &order.loader,
        generation_id: Uuid::new_v4(),
    };
    let plan = plan(&wish);
    let mut objections: Vec<Error> = plan.objections(&wish).into_iter().map(Error::from).collect();
    if plan.keep.is_some() {
        objections.extend(room(tx, vm, order.most).await.err());
    }
    objections.extend(check_generation(vm.name.as_str(), vm.generation, order.expected).err());
    objections.extend(check_generation(snapshot.name.as_str(), snapshot.generation, order.expected_snapshot).err());
    let mut wanted = locks(vm.id, Activity::Applying);
    wanted.push((Resource::Snapshot(snapshot.id), Mode::Shared));
    add_holders(tx, &wanted, &mut objections).await?;
    Ok((plan, objections))
}

#[async_trait]
impl Kind for SnapshotApply {
    type Order = ApplyOrder;
    type Plan = ApplyJob;
    const KIND: JobKind = JobKind::SnapshotApply;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: ApplyOrder) -> Result<Begun<ApplyJob>> {
        let before = tx.vm(order.vm).await?;
        let (plan, objections) = preview(tx, &before, &order).await?;
        if let Some(objection) = objections.into_iter().next() {
            return Err(objection);
        }
        let vm = take_vm(tx, job, order.vm, order.expected, Activity::Applying).await?;
        let snapshot = tx.snapshot(order.snapshot).await?;
        hold_snapshot(tx, job, &snapshot).await?;
        let plan = decide(&vm, &before.state, &snapshot, plan);
        if let Some(name) = &plan.plan.keep {
            tx.insert_snapshot(&kept(&vm, &plan, name.clone(), job, Some(order.keep_until()))).await?;
        }
        let title = format!("apply {} to {}", snapshot.name, vm.name);
        Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot: Some(snapshot.id), template: None })
    }

    fn steps(&self, plan: &ApplyJob) -> Vec<Box<dyn Step>> {
        let agent = || self.agent.clone();
        let (vm, generation, name) = (plan.vm, plan.generation, plan.name.to_string());
        let instant = Instant {
            agent: agent(),
            name: format!("the state of {} given up", plan.name),
            snapshot: plan.keep,
            wish: plan.instant.clone(),
            memory: None,
            precious: true,
        };
        let back = Some(plan.back.clone());
        let stop =
            Stop { agent: agent(), vm, name: name.clone(), generation, how: StopHow::Hard, back, commits: false };
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        match plan.before {
            Some(Rest::Running | Rest::Paused { .. }) => {
                if let Some(wish) = plan.start.clone().filter(|_| plan.checks) {
                    steps.push(Box::new(Check { agent: agent(), vm, wish }));
                }
                if plan.pauses() {
                    steps.push(Box::new(Pause { agent: agent(), vm, name, generation }));
                }
                steps.push(Box::new(instant));
                match plan.keep_memory {
                    Some(memory) => steps.push(Box::new(GiveUp {
                        agent: agent(),
                        vm,
                        name: plan.name.to_string(),
                        snapshot: plan.keep,
                        memory,
                        back: plan.back.clone(),
                    })),
                    None => steps.push(Box::new(stop)),
                }
            }
            Some(Rest::Stopped) => steps.push(Box::new(instant)),
            // There is nothing to come back to: it stays off.
            None => {
                steps.push(Box::new(Stop { back: None, ..stop }));
                if !plan.blind() {
                    steps.push(Box::new(instant));
                }
            }
        }
        let volumes = plan.reverts.clone();
        let name = plan.snapshot_name.to_string();
        steps.push(Box::new(Revert { agent: agent(), name, snapshot: plan.snapshot, vm, generation, volumes }));
        if let Some(wish) = &plan.start {
            steps.push(Box::new(Start { agent: agent(), vm, wish: wish.clone(), new: false }));
        }
        if plan.sets_clock {
            steps.push(Box::new(SetClock { agent: agent(), vm, name: plan.name.to_string(), generation }));
        }
        if let Some(memory) = plan.keep_memory {
            let name = format!("the state of {} given up", plan.name);
            steps.push(Box::new(KeepMemory { agent: agent(), name, snapshot: plan.keep, memory }));
        }
        if plan.plan.keep.is_none() && !plan.blind() {
            let staying =
                plan.instant.volumes.iter().filter(|v| !plan.plan.unreferenced.contains(v)).cloned().collect();
            let instants = vec![(plan.keep, staying)];
            steps.push(Box::new(DeleteInstants { agent: agent(), instants, total: 1, before: 0, clears: true }));
        }
        if !plan.plan.unreferenced.is_empty() {
            let volumes = plan.plan.unreferenced.clone();
            steps.push(Box::new(DeleteVolumes { agent: agent(), volumes, clears: true }));
        }
        steps
    }

    async fn passed(
        &self,
        tx: &mut Transaction,
        job: JobId,
        plan: &ApplyJob,
        step: usize,
        output: &Value,
    ) -> Result<()> {
        if plan.lets_go_after() != Some(step) {
            return Ok(());
        }
        plan.leave(tx, power(&serde_json::from_value(output.clone()).into_iter().collect::<Vec<_>>())).await?;
        Ok(tx.unlock_these(job, &[Resource::Vm(plan.vm)]).await?)
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, ApplyJob>) -> Result<Value> {
        let plan = job.plan;
        let left = outputs(job.outputs, self.steps(plan).len());
        let lost = lost(&left);
        finish_kept(tx, job, report(&left), lost.is_some()).await?;
        let cut_off = matches!(job.outcome, Outcome::Undone { .. }) && plan.cuts_off() && stopped(&left);
        let cut_off = cut_off.then(|| {
            format!(
                "the guest was started anew: {} could not be applied after the guest had been stopped, and its memory had \
                 not been kept",
                plan.snapshot_name
            )
        });
        let lost = plan.plan.keep.as_ref().zip(lost);
        let lost =
            lost.map(|(keep, why)| format!("{keep} has the disks that were given up, but not the memory: {why}"));
        let notice = match cut_off.or(lost) {
            Some(text) => Some(named(tx, &text).await),
            None => None,
        };
        if holds_vm(tx, job.id, plan.vm).await? {
            match job.outcome {
                Outcome::Done => plan.leave(tx, power(&left)).await?,
                Outcome::Undone { .. } | Outcome::Broken { .. } => {
                    leave_vm(tx, plan.vm, vm_event(job.outcome, plan.plan.ends), |_| {}).await?;
                }
            }
        }
        if let Some(text) = notice.clone() {
            let mut vm = tx.vm(plan.vm).await?;
            vm.notice = Some(Notice { at: Timestamp::now(), text });
            tx.update_vm(&mut vm).await?;
        }
        Ok(json!({ "notes": Vec::from_iter(notice.into_iter().chain(notes(&left))) }))
    }
}

/// What becomes of the instant of what was given up. One that stands for a state that could not be brought back is a snapshot,
/// whether it was meant to be one or not.
async fn finish_kept(
    tx: &mut Transaction,
    job: &Ending<'_, ApplyJob>,
    report: Option<InstantReport>,
    lost: bool,
) -> Result<()> {
    let plan = job.plan;
    // Its step leaves it alone if it is needed; it is undone after those that follow it.
    let at = usize::from(plan.checks) + usize::from(plan.pauses() || plan.before.is_none());
    let report = report.filter(|_| job.done(at) || job.stuck_after(at));
    match (&plan.plan.keep, job.outcome, report) {
        (None, Outcome::Done | Outcome::Undone { .. }, _) | (None, Outcome::Broken { .. }, None) => {}
        (Some(_), Outcome::Undone { .. }, _) => {
            tx.delete_snapshots(plan.vm, &[plan.keep]).await?;
        }
        (None, Outcome::Broken { .. }, Some(report)) => {
            let vm = tx.vm(plan.vm).await?;
            let name = numbered(&format!("before-{}", plan.snapshot_name), &names(tx, plan.vm).await?);
            let keep = kept(&vm, plan, name, job.id, None);
            let keep = Snapshot { state: keep.after(&SnapshotEvent::Taken)?, report: Some(report), ..keep };
            tx.insert_snapshot(&keep).await?;
        }
        (Some(_), Outcome::Done | Outcome::Broken { .. }, report) => {
            let mut keep = tx.snapshot(plan.keep).await?;
            let broke = || SnapshotEvent::Broke("it was not finished".to_owned());
            keep.state = keep.after(&report.as_ref().map_or_else(broke, |_| SnapshotEvent::Taken))?;
            keep.report = report;
            if lost {
                keep.kind = SnapshotKind::Disk;
            }
            tx.update_snapshot(&mut keep).await?;
        }
    }
    Ok(())
}

/// The machine's process was ended on the way.
fn stopped(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Power(Power::Off)))
}

/// Everything that the steps need to know.
fn decide(vm: &Vm, before: &VmState, snapshot: &Snapshot, plan: ApplyPlan) -> ApplyJob {
    let keep = SnapshotId::new();
    let keep_memory = plan.keep_memory.then_some(vm.hardware.memory);
    let back = StartVm {
        generation: vm.generation,
        machine: vm.hardware.machine(vm.id, &vm.name),
        from: match keep_memory {
            Some(_) => StartFrom::Memory { snapshot: keep, new_identity: false },
            None => StartFrom::Cold,
        },
        paused: true,
    };
    let from = match plan.memory {
        MemoryUse::Used => StartFrom::Memory { snapshot: snapshot.id, new_identity: false },
        MemoryUse::Absent | MemoryUse::LeftAside | MemoryUse::Unusable { .. } => StartFrom::Cold,
    };
    let machine = plan.hardware.machine(vm.id, &vm.name);
    let start = StartVm { generation: vm.generation, machine, from, paused: false };
    let blind = matches!(before, VmState::Error { .. }) && plan.keep.is_none();
    let reverts = snapshot.hardware.disks.iter().map(|disk| {
        let fate = plan.disks.iter().find(|(id, ..)| *id == disk.id).map(|&(.., fate)| fate);
        (disk.volume.clone(), (fate == Some(DiskFate::Reverted) && !blind).then_some(keep))
    });
    ApplyJob {
        vm: vm.id,
        name: vm.name.clone(),
        generation: vm.generation,
        snapshot: snapshot.id,
        snapshot_name: snapshot.name.clone(),
        before: match before {
            VmState::At { rest } => Some(*rest),
            VmState::Busy { .. } | VmState::Error { .. } | VmState::Gone => None,
        },
        keep,
        instant: instant_of(vm, false, Quiesce::No, HOLD),
        keep_memory,
        back,
        reverts: reverts.collect(),
        checks: plan.ends == Rest::Running
            && matches!(before, VmState::At { rest: Rest::Running | Rest::Paused { .. } }),
        sets_clock: plan.ends == Rest::Running && plan.memory == MemoryUse::Used,
        start: (plan.ends == Rest::Running).then_some(start),
        plan,
    }
}

/// The automatic snapshot, while it is being taken.
fn kept(vm: &Vm, plan: &ApplyJob, name: Name, job: JobId, expires: Option<Timestamp>) -> Snapshot {
    Snapshot {
        id: plan.keep,
        vm: vm.id,
        name,
        description: format!("the state of {} given up when {} was applied", vm.name, plan.snapshot_name),
        tags: Vec::new(),
        generation: Generation(1),
        state: SnapshotState::Creating { job },
        kind: if plan.keep_memory.is_some() { SnapshotKind::DiskAndMemory } else { SnapshotKind::Disk },
        origin: SnapshotOrigin::BeforeApply { applied: plan.snapshot },
        parent: vm.current,
        created: Timestamp::now(),
        expires,
        locked: false,
        quiesce: Quiesce::No,
        hardware: vm.hardware.clone(),
        report: None,
        verification: None,
    }
}
