//! Making machines of another one: of a snapshot, of a template, or of a machine as it is now.
//!
//! ```text
//!  (instant of the machine) ─► disks of each copy ─► start each ─► tell the guests ─► (delete the instant)
//! ```
//! Copies share blocks with their source and depend on nothing. A machine that is copied as it is now is let go of as soon as
//! the copies have their disks. Its instant is the job's own, and whatever becomes of the machine from then on, the copies start
//! from that. A snapshot or template is let go of as soon as they have started as well: whoever still reads its memory has a link
//! of its own to it, and nothing that is undone needs it. So the guests' agents keep nobody from deleting it.

use async_trait::async_trait;
use keyframe_catalog::Transaction;
use keyframe_model::agent::{
    Bytes, CreateVolume, FixIdentity, Generation, GuestIdentity, JobId, MemoryState, Micros, Power, Quiesce,
    SnapshotId, StartFrom, StartVm, TakeInstant, Timestamp, VmId, VolumeRef, VolumeSource,
};
use keyframe_model::apply::{MemoryUse, memory_use};
use keyframe_model::copy::{Copy, NicPolicy, copy};
use keyframe_model::memory::Loader;
use keyframe_model::{Activity, Hardware, JobKind, Name, Notice, Rest, SnapshotKind, Vm, VmEvent, VmState};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fresh::Random;
use super::hold::{holds_vm, leave_new_vm, leave_vm, release_vm, rest_before, rest_of, take_vm, vm_event};
use super::snapshot_create::instant_of;
use super::source::Source;
use super::step::{
    DeleteInstants, FixIdentities, Instant, Make, NewGuest, Output, Start, UNPLUGGED, notes, outputs, report,
};
use super::vm_create::FIRST;
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Outcome, Step};
use crate::{Error, ErrorKind, Result};

/// The longest that the source's writes may be held.
const HOLD: Micros = Micros(5_000_000);
/// How long a guest agent may take to tell its guest.
const TELL: Micros = Micros(10_000_000);

/// Machines to be made.
pub(crate) struct CloneOrder {
    pub(crate) origin: Origin,
    /// Of the origin.
    pub(crate) expected: Option<Generation>,
    pub(crate) names: Vec<Name>,
    pub(crate) description: String,
    /// With memory.
    pub(crate) memory: bool,
    pub(crate) nics: NicPolicy,
    pub(crate) start: bool,
    pub(crate) keep_identity: bool,
    /// The snapshot's memory as the host finds it, and what would load it.
    pub(crate) found: MemoryState,
    pub(crate) loader: Loader,
}

/// What they are made of.
#[derive(Clone, Copy)]
pub(crate) enum Origin {
    /// A machine as it is now.
    Vm(VmId),
    /// What has been kept.
    Kept(Source),
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct ClonePlan {
    copies: Vec<NewVm>,
    instant: Option<Taken>,
    /// What is held while they are made of it; absent also in plans that hold it to their end.
    #[serde(default)]
    source: Option<Source>,
}

impl ClonePlan {
    /// How many steps make disks.
    fn made(&self) -> usize {
        self.copies.iter().filter(|copy| !copy.volumes.is_empty()).count()
    }

    /// How many steps start machines.
    fn started(&self) -> usize {
        self.copies.iter().filter(|copy| copy.start.is_some()).count()
    }
}

/// A machine to be made.
#[derive(Serialize, Deserialize)]
struct NewVm {
    vm: VmId,
    name: Name,
    volumes: Vec<(VolumeRef, CreateVolume)>,
    start: Option<StartVm>,
    identity: Option<GuestIdentity>,
    /// It was to have cables that are in, and keeps the source's addresses.
    #[serde(default)]
    keeps_identity: bool,
}

/// An instant of the source, for the time of the job.
#[derive(Serialize, Deserialize)]
struct Taken {
    name: Name,
    before: Rest,
    snapshot: SnapshotId,
    wish: TakeInstant,
    memory: Option<Bytes>,
}

/// What is copied.
struct Original {
    name: Name,
    hardware: Hardware,
    snapshot: SnapshotId,
}

/// Makes machines of another one.
pub(crate) struct CloneVm {
    pub(crate) agent: Agent,
}

#[async_trait]
impl Kind for CloneVm {
    type Order = CloneOrder;
    type Plan = ClonePlan;
    const KIND: JobKind = JobKind::Clone;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: CloneOrder) -> Result<Begun<ClonePlan>> {
        let (original, instant) = match order.origin {
            Origin::Vm(vm) => take(tx, job, vm, &order).await?,
            Origin::Kept(source) => {
                source.hold(tx, job, order.expected).await?;
                (kept(tx, source, &order).await?, None)
            }
        };
        let network = format!("job-{job}");
        let mut copies = Vec::with_capacity(order.names.len());
        for name in &order.names {
            let copy = copy(&original.hardware, original.snapshot, &order.nics, &network, &mut Random);
            let vm = Vm {
                id: VmId::new(),
                name: name.clone(),
                description: order.description.clone(),
                generation: FIRST,
                state: VmState::Busy { from: None, error: None, activity: Activity::Creating, job },
                created: Timestamp::now(),
                hardware: copy.hardware.clone(),
                current: None,
                notice: None,
            };
            tx.insert_vm(&vm).await?;
            copies.push(new_vm(&vm, copy, original.snapshot, &order));
        }
        let title = match &order.names[..] {
            [one] => format!("clone {} as {one}", original.name),
            many => format!("clone {} {} times", original.name, many.len()),
        };
        let held = match order.origin {
            Origin::Kept(source) => Some(source),
            Origin::Vm(_) => None,
        };
        let source = match order.origin {
            Origin::Vm(vm) => Some(vm),
            Origin::Kept(Source::Snapshot(id)) => Some(tx.snapshot(id).await?.vm),
            Origin::Kept(Source::Template(_)) => None,
        };
        let vms = copies.iter().map(|copy| copy.vm).collect();
        let snapshot = match order.origin {
            Origin::Kept(Source::Snapshot(id)) => Some(id),
            Origin::Kept(Source::Template(_)) | Origin::Vm(_) => None,
        };
        Ok(Begun { plan: ClonePlan { copies, instant, source: held }, title, vms, source, snapshot, template: None })
    }

    fn steps(&self, plan: &ClonePlan) -> Vec<Box<dyn Step>> {
        let agent = || self.agent.clone();
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        if let Some(taken) = &plan.instant {
            let (name, wish) = (format!("an instant of {}", taken.name), taken.wish.clone());
            let (snapshot, memory) = (taken.snapshot, taken.memory);
            steps.push(Box::new(Instant { agent: agent(), name, snapshot, wish, memory, precious: false }));
        }
        for copy in plan.copies.iter().filter(|copy| !copy.volumes.is_empty()) {
            let (what, volumes) = (copy.name.to_string(), copy.volumes.clone());
            steps.push(Box::new(Make { agent: agent(), what, volumes }));
        }
        for copy in &plan.copies {
            if let Some(wish) = &copy.start {
                steps.push(Box::new(Start { agent: agent(), vm: copy.vm, wish: wish.clone(), new: true }));
            }
        }
        let guests: Vec<NewGuest> = plan.copies.iter().filter_map(guest).collect();
        if !guests.is_empty() {
            steps.push(Box::new(FixIdentities { agent: agent(), guests, deadline: TELL }));
        }
        if let Some(taken) = &plan.instant {
            // Whoever still reads its memory has a link of its own to it.
            let instants = vec![(taken.snapshot, taken.wish.volumes.clone())];
            steps.push(Box::new(DeleteInstants { agent: agent(), instants, total: 1, before: 0, clears: true }));
        }
        steps
    }

    async fn passed(&self, tx: &mut Transaction, job: JobId, plan: &ClonePlan, step: usize, _: &Value) -> Result<()> {
        let first = usize::from(plan.instant.is_some());
        if let Some(taken) = &plan.instant
            && step + 1 == first + plan.made()
        {
            release_vm(tx, job, taken.wish.vm, taken.before).await?;
        }
        match &plan.source {
            Some(source) if step + 1 == first + plan.made() + plan.started() => source.release(tx, job).await,
            Some(_) | None => Ok(()),
        }
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, ClonePlan>) -> Result<Value> {
        let left = outputs(job.outputs, self.steps(job.plan).len());
        let mut powers =
            left.iter().filter_map(|output| if let Output::Power(power) = output { Some(power) } else { None });
        let mut told = Vec::new();
        for copy in &job.plan.copies {
            let power = if copy.start.is_some() { powers.next() } else { None };
            let rest = rest_of(power.unwrap_or(&Power::Off));
            let why = left_unplugged(copy, &left).filter(|_| matches!(job.outcome, Outcome::Done));
            let change = |vm: &mut Vm| {
                if let Some(text) = &why {
                    vm.hardware.nics.iter_mut().for_each(|nic| nic.link_up = false);
                    vm.notice = Some(Notice { at: Timestamp::now(), text: text.clone() });
                }
            };
            leave_new_vm(tx, copy.vm, vm_event(job.outcome, rest), change).await?;
            if let Some(text) = why {
                tx.remark(&text);
                told.extend(copy.keeps_identity.then_some(text));
            }
        }
        if let Some(taken) = &job.plan.instant
            && holds_vm(tx, job.id, taken.wish.vm).await?
        {
            let event = match job.outcome {
                Outcome::Done => VmEvent::Finished(taken.before),
                // Whatever became of the copies, nothing happened to the source.
                Outcome::Undone { .. } | Outcome::Broken { .. } => VmEvent::Undone,
            };
            leave_vm(tx, taken.wish.vm, event, |_| {}).await?;
        }
        told.extend(notes(&left));
        Ok(json!({ "notes": told, "instant": report(&left) }))
    }
}

/// Why a copy's cables are out that were to be in, and what its guest was not told.
fn left_unplugged(copy: &NewVm, left: &[Output]) -> Option<String> {
    if copy.keeps_identity {
        return Some(format!("{}: {UNPLUGGED}", copy.name));
    }
    let told = left.iter().find_map(|output| {
        if let Output::Told(all) = output { all.iter().find(|told| told.vm == copy.vm && told.unplugged) } else { None }
    });
    told.map(|told| told.complaints.join("; "))
}

/// Holds a machine for an instant of it.
async fn take(tx: &mut Transaction, job: JobId, vm: VmId, order: &CloneOrder) -> Result<(Original, Option<Taken>)> {
    let vm = take_vm(tx, job, vm, order.expected, Activity::Cloning).await?;
    order.nics.fits(vm.name.as_str(), &vm.hardware)?;
    let before = rest_before(&vm);
    if order.memory && before == Rest::Stopped {
        let message = format!("{} is stopped, so it has no memory; clone it without memory, or start it", vm.name);
        return Err(Error::new(ErrorKind::State, message));
    }
    let snapshot = SnapshotId::new();
    let wish = instant_of(&vm, order.memory, Quiesce::No, HOLD);
    let memory = order.memory.then_some(vm.hardware.memory);
    let taken = Taken { name: vm.name.clone(), before, snapshot, wish, memory };
    Ok((Original { name: vm.name, hardware: vm.hardware, snapshot }, Some(taken)))
}

/// What a snapshot or template has.
async fn kept(tx: &mut Transaction, source: Source, order: &CloneOrder) -> Result<Original> {
    match source {
        Source::Template(id) => {
            let template = tx.template(id).await?;
            order.nics.fits(template.name.as_str(), &template.hardware)?;
            if order.memory {
                let message = format!("template {} has no memory; clone it without", template.name);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            Ok(Original { name: template.name, hardware: template.hardware, snapshot: template.snapshot })
        }
        Source::Snapshot(id) => {
            let snapshot = tx.snapshot(id).await?;
            order.nics.fits(snapshot.name.as_str(), &snapshot.hardware)?;
            if order.memory && snapshot.kind == SnapshotKind::Disk {
                let message = format!("snapshot {} has no memory; clone it without", snapshot.name);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            let memory = memory_use(&snapshot, &order.found, &order.loader, !order.memory);
            if let MemoryUse::Unusable { reason } = memory {
                let message = format!(
                    "cannot clone snapshot {} with its memory: {reason}; its disks can be cloned without memory",
                    snapshot.name
                );
                return Err(Error::new(ErrorKind::State, message));
            }
            Ok(Original { name: snapshot.name, hardware: snapshot.hardware, snapshot: id })
        }
    }
}

fn new_vm(vm: &Vm, copy: Copy, snapshot: SnapshotId, order: &CloneOrder) -> NewVm {
    let machine = vm.hardware.machine(vm.id, &vm.name);
    let from = if order.memory { StartFrom::Memory { snapshot, new_identity: true } } else { StartFrom::Cold };
    let contents = copy.sources.into_iter().map(|of| CreateVolume { source: VolumeSource::Snapshot(of), size: None });
    let identity = GuestIdentity { host_name: Some(vm.name.to_string()), macs: copy.macs, clock: true };
    NewVm {
        vm: vm.id,
        name: vm.name.clone(),
        volumes: copy.hardware.volumes().into_iter().zip(contents).collect(),
        start: (order.memory || order.start).then_some(StartVm { generation: FIRST, machine, from, paused: false }),
        identity: (order.memory && !order.keep_identity).then_some(identity),
        keeps_identity: order.memory && order.keep_identity && vm.hardware.nics.iter().any(|nic| nic.link_up),
    }
}

fn guest(copy: &NewVm) -> Option<NewGuest> {
    let identity = copy.identity.clone()?;
    let wish = FixIdentity { generation: FIRST, identity, deadline: TELL };
    let machine = copy.start.as_ref().map(|start| &start.machine);
    let cables = machine.is_some_and(|machine| machine.nics.iter().any(|nic| nic.link_up));
    Some(NewGuest { vm: copy.vm, name: copy.name.to_string(), wish, cables })
}
