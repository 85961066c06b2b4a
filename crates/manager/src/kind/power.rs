//! Starting, stopping, pausing, resuming and resetting a machine.

use async_trait::async_trait;
use keyframe_catalog::Transaction;
use keyframe_model::agent::{Generation, JobId, Micros, StartFrom, StartVm, StopHow, VmId};
use keyframe_model::{Activity, JobKind, Rest, VmState};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::hold::{PAUSED, leave_vm, rest_before, rest_of, take_idle_vm, take_vm, vm_event};
use super::step::{Pause, Reset, Resume, Start, Stop, notes, outputs, power};
use crate::Result;
use crate::agent::Agent;
use crate::job::{Begun, Ending, Kind, Step};

/// Which machine, and what for.
pub(crate) struct PowerOrder<A> {
    pub(crate) vm: VmId,
    pub(crate) expected: Option<Generation>,
    pub(crate) act: A,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct PowerPlan<A> {
    vm: VmId,
    name: String,
    generation: Generation,
    before: Rest,
    after: Rest,
    /// How it is started.
    start: StartVm,
    act: A,
}

/// Start: leave the processors standing still.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Starting {
    pub(crate) paused: bool,
}

/// Stop: in what way.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Stopping {
    pub(crate) hard: bool,
    pub(crate) deadline: Micros,
    pub(crate) then_hard: bool,
    /// It was busy when it was asked for, and nobody knows what was made of it since.
    #[serde(default)]
    pub(crate) even_if_off: bool,
}

/// Nothing else to say.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Plain;

/// What the begin of a job asks its order.
trait Act {
    fn even_if_off(&self) -> bool {
        false
    }
}

impl Act for Starting {}
impl Act for Plain {}
impl Act for Stopping {
    fn even_if_off(&self) -> bool {
        self.even_if_off
    }
}

async fn begin<A: Act>(
    tx: &mut Transaction,
    job: JobId,
    order: PowerOrder<A>,
    activity: Activity,
    after: impl FnOnce(Rest) -> Rest,
    paused: bool,
) -> Result<Begun<PowerPlan<A>>> {
    let off = VmState::At { rest: Rest::Stopped };
    let vm = if order.act.even_if_off() && tx.vm(order.vm).await?.state == off {
        take_idle_vm(tx, job, order.vm, activity).await?
    } else {
        take_vm(tx, job, order.vm, order.expected, activity).await?
    };
    let before = rest_before(&vm);
    let start = StartVm {
        generation: vm.generation,
        machine: vm.hardware.machine(vm.id, &vm.name),
        from: StartFrom::Cold,
        paused,
    };
    let title = format!("{} {}", activity.verb(), vm.name);
    let (generation, name, after) = (vm.generation, vm.name.to_string(), after(before));
    let plan = PowerPlan { vm: vm.id, name, generation, before, after, start, act: order.act };
    Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot: None, template: None })
}

async fn finish<A: Send + Sync>(tx: &mut Transaction, job: &Ending<'_, PowerPlan<A>>) -> Result<Value> {
    let left = outputs(job.outputs, 1);
    let done = power(&left).map_or(job.plan.after, |power| rest_of(&power));
    leave_vm(tx, job.plan.vm, vm_event(job.outcome, done), |_| {}).await?;
    match &notes(&left)[..] {
        [] => Ok(Value::Null),
        notes => Ok(json!({ "notes": notes })),
    }
}

macro_rules! power_kind {
    ($(#[$doc:meta])* $name:ident, $act:ty, $kind:ident, $activity:ident, $after:expr, paused $paused:expr, $steps:expr) => {
        $(#[$doc])*
        pub(crate) struct $name {
            pub(crate) agent: Agent,
        }

        #[async_trait]
        impl Kind for $name {
            type Order = PowerOrder<$act>;
            type Plan = PowerPlan<$act>;
            const KIND: JobKind = JobKind::$kind;

            async fn begin(&self, tx: &mut Transaction, job: JobId, order: Self::Order) -> Result<Begun<Self::Plan>> {
                let paused = ($paused)(&order.act);
                begin(tx, job, order, Activity::$activity, $after, paused).await
            }

            fn steps(&self, plan: &Self::Plan) -> Vec<Box<dyn Step>> {
                ($steps)(self.agent.clone(), plan)
            }

            async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, Self::Plan>) -> Result<Value> {
                finish(tx, job).await
            }
        }
    };
}

power_kind!(
    /// Starts a machine.
    VmStart, Starting, VmStart, Starting, |_| Rest::Running, paused |act: &Starting| act.paused,
    |agent, plan: &PowerPlan<Starting>| -> Vec<Box<dyn Step>> {
        vec![Box::new(Start { agent, vm: plan.vm, wish: plan.start.clone(), new: false })]
    }
);

power_kind!(
    /// Stops a machine.
    VmStop, Stopping, VmStop, Stopping, |_| Rest::Stopped, paused |_: &Stopping| false,
    |agent, plan: &PowerPlan<Stopping>| -> Vec<Box<dyn Step>> {
        let Stopping { hard, deadline, then_hard, .. } = plan.act;
        let how = if hard { StopHow::Hard } else { StopHow::Graceful { deadline, then_hard } };
        // A plug that is pulled stays out; a guest that shut down although nobody wants it any more is started again.
        let back = (!hard && plan.before == Rest::Running).then(|| plan.start.clone());
        let (vm, name, generation) = (plan.vm, plan.name.clone(), plan.generation);
        let commits = back.is_none();
        vec![Box::new(Stop { agent, vm, name, generation, how, back, commits })]
    }
);

power_kind!(
    /// Lets the processors stand still.
    VmPause, Plain, VmPause, Pausing, |_| PAUSED, paused |_: &Plain| false,
    |agent, plan: &PowerPlan<Plain>| -> Vec<Box<dyn Step>> {
        vec![Box::new(Pause { agent, vm: plan.vm, name: plan.name.clone(), generation: plan.generation })]
    }
);

power_kind!(
    /// Lets the processors go on.
    VmResume, Plain, VmResume, Resuming, |_| Rest::Running, paused |_: &Plain| false,
    |agent, plan: &PowerPlan<Plain>| -> Vec<Box<dyn Step>> {
        let (name, generation, before) = (plan.name.clone(), plan.generation, plan.before);
        vec![Box::new(Resume { agent, vm: plan.vm, name, generation, before })]
    }
);

power_kind!(
    /// Presses the reset button.
    VmReset, Plain, VmReset, Resetting, |before| before, paused |_: &Plain| false,
    |agent, plan: &PowerPlan<Plain>| -> Vec<Box<dyn Step>> {
        vec![Box::new(Reset { agent, vm: plan.vm, name: plan.name.clone(), generation: plan.generation })]
    }
);
