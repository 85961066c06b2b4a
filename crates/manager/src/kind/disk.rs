//! Adding, taking out and resizing a disk. While snapshots exist this is allowed: each snapshot has its own list of disks.

use async_trait::async_trait;
use keyframe_catalog::Transaction;
use keyframe_model::agent::{Bytes, CreateVolume, DiskId, Generation, JobId, VmId, VolumeRef};
use keyframe_model::hardware::check_disk_size;
use keyframe_model::{Activity, Disk, JobKind, Name, Rest, Vm};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hold::{leave_vm, rest_before, take_vm, vm_event};
use super::step::{AddDisk, DeleteVolumes, Make, Output, RemoveDisk, Resize, outputs};
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Outcome, Step};
use crate::{Error, ErrorKind, Result};

/// A disk to be added.
pub(crate) struct AttachOrder {
    pub(crate) vm: VmId,
    pub(crate) expected: Option<Generation>,
    pub(crate) name: Option<Name>,
    pub(crate) slot: Option<u8>,
    pub(crate) array: String,
    pub(crate) content: CreateVolume,
    pub(crate) read_only: bool,
}

/// A disk to be taken out.
pub(crate) struct DetachOrder {
    pub(crate) vm: VmId,
    pub(crate) expected: Option<Generation>,
    pub(crate) disk: DiskId,
}

/// A disk to be resized.
pub(crate) struct ResizeOrder {
    pub(crate) vm: VmId,
    pub(crate) expected: Option<Generation>,
    pub(crate) disk: DiskId,
    pub(crate) size: Bytes,
    pub(crate) shrink: bool,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct DiskPlan<A> {
    vm: VmId,
    generation: Generation,
    before: Rest,
    disk: Disk,
    act: A,
}

impl<A> DiskPlan<A> {
    fn new(vm: &Vm, disk: Disk, act: A) -> DiskPlan<A> {
        DiskPlan { vm: vm.id, generation: vm.generation, before: rest_before(vm), disk, act }
    }

    fn has_process(&self) -> bool {
        self.before != Rest::Stopped
    }
}

fn found(vm: &Vm, disk: DiskId) -> Result<Disk> {
    let missing = || Error::not_found(format!("disk {disk} of {}", vm.name), format!("disk list {}", vm.name));
    vm.hardware.disk(disk).cloned().ok_or_else(missing)
}

fn begun<A>(title: String, plan: DiskPlan<A>) -> Begun<DiskPlan<A>> {
    let vms = vec![plan.vm];
    Begun { plan, title, vms, source: None, snapshot: None, template: None }
}

/// Adds a disk.
pub(crate) struct DiskAttach {
    pub(crate) agent: Agent,
}

#[async_trait]
impl Kind for DiskAttach {
    type Order = AttachOrder;
    type Plan = DiskPlan<CreateVolume>;
    const KIND: JobKind = JobKind::DiskAttach;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: AttachOrder) -> Result<Begun<Self::Plan>> {
        let vm = take_vm(tx, job, order.vm, order.expected, Activity::Reconfiguring).await?;
        let slot = vm.hardware.disk_place(order.slot)?;
        let name = vm.hardware.disk_name(order.name, slot)?;
        let id = DiskId::new();
        let volume = VolumeRef { array: order.array, volume: id.to_string() };
        let size = order.content.size.unwrap_or_default();
        let disk = Disk { id, name, slot, volume, size, read_only: order.read_only, firmware_variables: false };
        let title = format!("attach disk {} to {}", disk.name, vm.name);
        Ok(begun(title, DiskPlan::new(&vm, disk, order.content)))
    }

    fn steps(&self, plan: &Self::Plan) -> Vec<Box<dyn Step>> {
        let (vm, generation, name) = (plan.vm, plan.generation, plan.disk.name.to_string());
        let volumes = vec![(plan.disk.volume.clone(), plan.act.clone())];
        let what = format!("disk {name}");
        let mut steps: Vec<Box<dyn Step>> = vec![Box::new(Make { agent: self.agent.clone(), what, volumes })];
        if plan.has_process() {
            let (agent, disk) = (self.agent.clone(), plan.disk.slot());
            steps.push(Box::new(AddDisk { agent, vm, name, generation, disk }));
        }
        steps
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, Self::Plan>) -> Result<Value> {
        let plan = job.plan;
        let sizes = outputs(job.outputs, 1)
            .into_iter()
            .find_map(|output| if let Output::Sizes(sizes) = output { sizes.first().copied() } else { None });
        let disk = Disk { size: sizes.map_or(plan.disk.size, Bytes), ..plan.disk.clone() };
        let done = matches!(job.outcome, Outcome::Done);
        leave_vm(tx, plan.vm, vm_event(job.outcome, plan.before), |vm| {
            if done {
                vm.hardware.disks.push(disk);
                vm.hardware.disks.sort_by_key(|disk| disk.slot);
            }
        })
        .await?;
        Ok(Value::Null)
    }
}

/// What a detachment needs besides.
#[derive(Serialize, Deserialize)]
pub(crate) struct Detachment {
    /// No snapshot holds its volume.
    unreferenced: bool,
}

/// Takes a disk out.
pub(crate) struct DiskDetach {
    pub(crate) agent: Agent,
}

#[async_trait]
impl Kind for DiskDetach {
    type Order = DetachOrder;
    type Plan = DiskPlan<Detachment>;
    const KIND: JobKind = JobKind::DiskDetach;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: DetachOrder) -> Result<Begun<Self::Plan>> {
        let vm = take_vm(tx, job, order.vm, order.expected, Activity::Reconfiguring).await?;
        let disk = found(&vm, order.disk)?;
        if disk.firmware_variables {
            let message = format!("disk {} of {} holds the firmware's variables; it stays", disk.name, vm.name);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        // This machine refers to it once; whoever else does is a snapshot.
        let unreferenced = tx.owners_of(&disk.volume).await?.len() <= 1;
        let title = format!("detach disk {} from {}", disk.name, vm.name);
        Ok(begun(title, DiskPlan::new(&vm, disk, Detachment { unreferenced })))
    }

    fn steps(&self, plan: &Self::Plan) -> Vec<Box<dyn Step>> {
        let (vm, generation, name) = (plan.vm, plan.generation, plan.disk.name.to_string());
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        if plan.has_process() {
            let (agent, disk) = (self.agent.clone(), plan.disk.slot());
            steps.push(Box::new(RemoveDisk { agent, vm, name, generation, disk }));
        }
        if plan.act.unreferenced {
            let volumes = vec![plan.disk.volume.clone()];
            steps.push(Box::new(DeleteVolumes { agent: self.agent.clone(), volumes, clears: true }));
        }
        steps
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, Self::Plan>) -> Result<Value> {
        let plan = job.plan;
        let done = matches!(job.outcome, Outcome::Done);
        leave_vm(tx, plan.vm, vm_event(job.outcome, plan.before), |vm| {
            if done {
                vm.hardware.disks.retain(|disk| disk.id != plan.disk.id);
            }
        })
        .await?;
        Ok(Value::Null)
    }
}

/// What a resize needs besides.
#[derive(Serialize, Deserialize)]
pub(crate) struct NewSize {
    to: Bytes,
}

/// Resizes a disk.
pub(crate) struct DiskResize {
    pub(crate) agent: Agent,
}

#[async_trait]
impl Kind for DiskResize {
    type Order = ResizeOrder;
    type Plan = DiskPlan<NewSize>;
    const KIND: JobKind = JobKind::DiskResize;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: ResizeOrder) -> Result<Begun<Self::Plan>> {
        check_disk_size(order.size)?;
        let vm = take_vm(tx, job, order.vm, order.expected, Activity::Reconfiguring).await?;
        let disk = found(&vm, order.disk)?;
        if disk.firmware_variables {
            let message =
                format!("disk {} of {} holds the firmware's variables; its size is what it is", disk.name, vm.name);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let plan = DiskPlan::new(&vm, disk, NewSize { to: order.size });
        let (disk, vm) = (&plan.disk, &vm.name);
        if order.size < disk.size {
            if !order.shrink {
                let message = format!(
                    "disk {} of {vm} has {} bytes, and {} are less; what lies beyond would be lost, so say that you mean it (shrink)",
                    disk.name, disk.size, order.size
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            if plan.has_process() {
                let message = format!("cannot shrink disk {} of {vm}: it runs; stop it first", disk.name);
                return Err(Error::new(ErrorKind::State, message));
            }
        }
        let title = format!("resize disk {} of {vm} to {} bytes", disk.name, order.size);
        Ok(begun(title, plan))
    }

    fn steps(&self, plan: &Self::Plan) -> Vec<Box<dyn Step>> {
        let guest = plan.has_process().then(|| (plan.vm, plan.generation, plan.disk.slot()));
        vec![Box::new(Resize {
            agent: self.agent.clone(),
            name: plan.disk.name.to_string(),
            volume: plan.disk.volume.clone(),
            from: plan.disk.size,
            to: plan.act.to,
            guest,
        })]
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, Self::Plan>) -> Result<Value> {
        let plan = job.plan;
        let done = matches!(job.outcome, Outcome::Done);
        leave_vm(tx, plan.vm, vm_event(job.outcome, plan.before), |vm| {
            for disk in vm.hardware.disks.iter_mut().filter(|disk| done && disk.id == plan.disk.id) {
                disk.size = plan.act.to;
            }
        })
        .await?;
        Ok(Value::Null)
    }
}
