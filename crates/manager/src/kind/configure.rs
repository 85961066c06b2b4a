//! Changing processors, memory and network interfaces. With a process only cables can be plugged.

use async_trait::async_trait;
use keyframe_catalog::Transaction;
use keyframe_model::agent::{Bytes, Generation, JobId, NicId, VmId};
use keyframe_model::{Activity, Hardware, JobKind, Nic, Rest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hold::{leave_vm, rest_before, take_vm, vm_event};
use super::step::SetLinks;
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Outcome, Step};
use crate::{Error, ErrorKind, Result};

/// What changes.
pub(crate) struct ConfigureOrder {
    pub(crate) vm: VmId,
    pub(crate) expected: Option<Generation>,
    pub(crate) cpus: Option<u32>,
    pub(crate) memory: Option<Bytes>,
    /// All of them, with places and addresses.
    pub(crate) nics: Option<Vec<Nic>>,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct ConfigurePlan {
    vm: VmId,
    name: String,
    generation: Generation,
    before: Rest,
    hardware: Hardware,
    links: Vec<(NicId, bool)>,
}

/// Changes a machine.
pub(crate) struct VmConfigure {
    pub(crate) agent: Agent,
}

/// The cables that change; `None` if anything else does.
fn plugged(now: &[Nic], then: &[Nic]) -> Option<Vec<(NicId, bool)>> {
    let bare = |nic: &Nic| Nic { link_up: false, ..nic.clone() };
    let same = now.len() == then.len() && now.iter().zip(then).all(|(a, b)| bare(a) == bare(b));
    let pairs = now.iter().zip(then);
    same.then(|| pairs.filter(|(a, b)| a.link_up != b.link_up).map(|(_, b)| (b.id, b.link_up)).collect())
}

#[async_trait]
impl Kind for VmConfigure {
    type Order = ConfigureOrder;
    type Plan = ConfigurePlan;
    const KIND: JobKind = JobKind::VmConfigure;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: ConfigureOrder) -> Result<Begun<ConfigurePlan>> {
        let vm = take_vm(tx, job, order.vm, order.expected, Activity::Reconfiguring).await?;
        let mut hardware = vm.hardware.clone();
        hardware.cpus = order.cpus.unwrap_or(hardware.cpus);
        hardware.memory = order.memory.unwrap_or(hardware.memory);
        hardware.nics = order.nics.unwrap_or(hardware.nics);
        hardware.check()?;
        let before = rest_before(&vm);
        let cables = plugged(&vm.hardware.nics, &hardware.nics);
        let only_cables = Hardware { nics: vm.hardware.nics.clone(), ..hardware.clone() } == vm.hardware;
        let links = match (before, cables) {
            (Rest::Stopped, _) => Vec::new(),
            (Rest::Running | Rest::Paused { .. }, Some(links)) if only_cables => links,
            (Rest::Running | Rest::Paused { .. }, _) => {
                let message = format!(
                    "cannot change {}: it is not stopped; stop it first, while it runs only cables can be plugged",
                    vm.name
                );
                return Err(Error::new(ErrorKind::State, message));
            }
        };
        let (title, name) = (format!("change {}", vm.name), vm.name.to_string());
        let plan = ConfigurePlan { vm: vm.id, name, generation: vm.generation, before, hardware, links };
        Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot: None, template: None })
    }

    fn steps(&self, plan: &ConfigurePlan) -> Vec<Box<dyn Step>> {
        if plan.links.is_empty() {
            return Vec::new();
        }
        vec![Box::new(SetLinks {
            agent: self.agent.clone(),
            vm: plan.vm,
            name: plan.name.clone(),
            generation: plan.generation,
            links: plan.links.clone(),
        })]
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, ConfigurePlan>) -> Result<Value> {
        let plan = job.plan;
        let done = matches!(job.outcome, Outcome::Done);
        leave_vm(tx, plan.vm, vm_event(job.outcome, plan.before), |vm| {
            if done {
                vm.hardware = plan.hardware.clone();
            }
        })
        .await?;
        Ok(Value::Null)
    }
}
