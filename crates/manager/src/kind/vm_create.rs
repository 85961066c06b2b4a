//! Making a machine: its disks first, then, if wished, its first start.

use async_trait::async_trait;
use keyframe_catalog::Transaction;
use keyframe_model::agent::{Bytes, CreateVolume, Generation, JobId, StartFrom, StartVm, Timestamp, VmId, VolumeRef};
use keyframe_model::{Activity, Hardware, JobKind, Name, Rest, Vm, VmState};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hold::{leave_new_vm, rest_of, vm_event};
use super::source::Source;
use super::step::{Make, Output, Start, outputs, power};
use crate::Result;
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Step};

/// A machine to be made.
pub(crate) struct VmCreateOrder {
    pub(crate) name: Name,
    pub(crate) description: String,
    /// All of it; the size of a disk whose size its image says is 0.
    pub(crate) hardware: Hardware,
    /// What is in each disk, in their order.
    pub(crate) contents: Vec<CreateVolume>,
    /// What has to stay until they are made.
    pub(crate) source: Option<Source>,
    /// Of the source.
    pub(crate) expected: Option<Generation>,
    pub(crate) start: bool,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct VmCreatePlan {
    vm: VmId,
    name: Name,
    hardware: Hardware,
    volumes: Vec<(VolumeRef, CreateVolume)>,
    start: Option<StartVm>,
}

/// Makes a machine.
pub(crate) struct VmCreate {
    pub(crate) agent: Agent,
}

/// The generation of a machine that is new.
pub(crate) const FIRST: Generation = Generation(1);

#[async_trait]
impl Kind for VmCreate {
    type Order = VmCreateOrder;
    type Plan = VmCreatePlan;
    const KIND: JobKind = JobKind::VmCreate;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: VmCreateOrder) -> Result<Begun<VmCreatePlan>> {
        if let Some(source) = &order.source {
            source.hold(tx, job, order.expected).await?;
        }
        let vm = Vm {
            id: VmId::new(),
            name: order.name,
            description: order.description,
            generation: FIRST,
            state: VmState::Busy { from: None, error: None, activity: Activity::Creating, job },
            created: Timestamp::now(),
            hardware: order.hardware,
            current: None,
            notice: None,
        };
        tx.insert_vm(&vm).await?;
        let machine = || vm.hardware.machine(vm.id, &vm.name);
        let plan = VmCreatePlan {
            vm: vm.id,
            name: vm.name.clone(),
            volumes: vm.hardware.volumes().into_iter().zip(order.contents).collect(),
            start: order.start.then(|| StartVm {
                generation: FIRST,
                machine: machine(),
                from: StartFrom::Cold,
                paused: false,
            }),
            hardware: vm.hardware.clone(),
        };
        let title = format!("create {}", vm.name);
        Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot: None, template: None })
    }

    fn steps(&self, plan: &VmCreatePlan) -> Vec<Box<dyn Step>> {
        let what = plan.name.to_string();
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        if !plan.volumes.is_empty() {
            steps.push(Box::new(Make { agent: self.agent.clone(), what, volumes: plan.volumes.clone() }));
        }
        if let Some(wish) = &plan.start {
            steps.push(Box::new(Start { agent: self.agent.clone(), vm: plan.vm, wish: wish.clone(), new: true }));
        }
        steps
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, VmCreatePlan>) -> Result<Value> {
        let left = outputs(job.outputs, 2);
        let rest = power(&left).map_or(Rest::Stopped, |power| rest_of(&power));
        leave_new_vm(tx, job.plan.vm, vm_event(job.outcome, rest), |vm| take_sizes(&mut vm.hardware, &left)).await?;
        Ok(Value::Null)
    }
}

/// The sizes that the volumes turned out to have.
pub(crate) fn take_sizes(hardware: &mut Hardware, left: &[Output]) {
    for output in left {
        if let Output::Sizes(sizes) = output {
            for (disk, &size) in hardware.disks.iter_mut().zip(sizes) {
                disk.size = Bytes(size);
            }
        }
    }
}
