//! Making and deleting templates.
//!
//! A template gets volumes of its own, clones of what it is made of, and each of them one array snapshot from which
//! machines are cloned later. That snapshot is taken like any other instant, of a machine that has the template's
//! identifier, never runs, and has these volumes.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::{Mode, Resource, Transaction};
use keyframe_model::agent::{
    CreateVolume, Generation, JobId, Micros, Quiesce, SnapshotId, TakeInstant, TemplateId, Timestamp, VmId, VolumeRef,
    VolumeSource,
};
use keyframe_model::copy::{NicPolicy, copy};
use keyframe_model::{
    Activity, Hardware, JobKind, Name, Rest, Template, TemplateEvent, TemplateOrigin, TemplateState, VmEvent,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fresh::Random;
use super::hold::{check_generation, hold_snapshot, leave_vm, reason, rest_before, take_vm};
use super::snapshot_create::instant_of;
use super::step::{DeleteInstants, DeleteVolumes, Forget, Instant, Make, forget};
use super::vm_create::FIRST;
use crate::agent::Agent;
use crate::job::{Begun, Context, Ending, Kind, Outcome, Probe, Step};
use crate::request::TemplateSource;
use crate::{Error, ErrorKind, Result};

/// The longest that an instant of what is at rest may take.
const HOLD: Micros = Micros(5_000_000);

/// A template to be made.
pub(crate) struct TemplateOrder {
    pub(crate) name: Name,
    pub(crate) description: String,
    pub(crate) source: TemplateSource,
    pub(crate) expected: Option<Generation>,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct TemplatePlan {
    template: TemplateId,
    name: Name,
    volumes: Vec<(VolumeRef, CreateVolume)>,
    /// An instant of the machine, for the time of the job.
    source: Option<(SnapshotId, TakeInstant)>,
    /// The template's own.
    own: SnapshotId,
}

/// Makes a template.
pub(crate) struct TemplateCreate {
    pub(crate) agent: Agent,
}

/// The machine that a template's instant is of.
fn as_vm(template: TemplateId) -> VmId {
    template.uuid().into()
}

struct Original {
    hardware: Hardware,
    snapshot: SnapshotId,
    origin: TemplateOrigin,
    instant: Option<(SnapshotId, TakeInstant)>,
}

async fn original(tx: &mut Transaction, job: JobId, order: &TemplateOrder) -> Result<Original> {
    match order.source {
        TemplateSource::Vm { vm } => {
            let vm = take_vm(tx, job, vm, order.expected, Activity::Cloning).await?;
            if rest_before(&vm) != Rest::Stopped {
                let message = format!(
                    "cannot make a template of {}: it is {}; stop it first, or make it of a snapshot",
                    vm.name,
                    rest_before(&vm)
                );
                return Err(Error::new(ErrorKind::State, message));
            }
            let snapshot = SnapshotId::new();
            let instant = Some((snapshot, instant_of(&vm, false, Quiesce::No, HOLD)));
            Ok(Original { hardware: vm.hardware, snapshot, origin: TemplateOrigin::Vm { vm: vm.id }, instant })
        }
        TemplateSource::Snapshot { snapshot } => {
            let snapshot = tx.snapshot(snapshot).await?;
            check_generation(snapshot.name.as_str(), snapshot.generation, order.expected)?;
            hold_snapshot(tx, job, &snapshot).await?;
            let origin = TemplateOrigin::Snapshot { snapshot: snapshot.id };
            Ok(Original { hardware: snapshot.hardware, snapshot: snapshot.id, origin, instant: None })
        }
    }
}

#[async_trait]
impl Kind for TemplateCreate {
    type Order = TemplateOrder;
    type Plan = TemplatePlan;
    const KIND: JobKind = JobKind::TemplateCreate;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: TemplateOrder) -> Result<Begun<TemplatePlan>> {
        let original = original(tx, job, &order).await?;
        let copy = copy(&original.hardware, original.snapshot, &NicPolicy::Keep, "", &mut Random);
        let contents =
            copy.sources.into_iter().map(|of| CreateVolume { source: VolumeSource::Snapshot(of), size: None });
        let template = Template {
            id: TemplateId::new(),
            name: order.name,
            description: order.description,
            generation: FIRST,
            state: TemplateState::Creating { job },
            created: Timestamp::now(),
            origin: original.origin,
            hardware: copy.hardware,
            snapshot: SnapshotId::new(),
        };
        tx.insert_template(&template).await?;
        let plan = TemplatePlan {
            template: template.id,
            volumes: template.hardware.volumes().into_iter().zip(contents).collect(),
            source: original.instant,
            own: template.snapshot,
            name: template.name.clone(),
        };
        let title = format!("make template {}", template.name);
        let source = match order.source {
            TemplateSource::Vm { vm } => vm,
            TemplateSource::Snapshot { snapshot } => tx.snapshot(snapshot).await?.vm,
        };
        Ok(Begun { plan, title, vms: Vec::new(), source: Some(source), snapshot: None, template: Some(template.id) })
    }

    fn steps(&self, plan: &TemplatePlan) -> Vec<Box<dyn Step>> {
        let agent = || self.agent.clone();
        let instant = |name, snapshot, wish: &TakeInstant| Instant {
            agent: agent(),
            name,
            snapshot,
            wish: wish.clone(),
            memory: None,
            precious: false,
        };
        let mut steps: Vec<Box<dyn Step>> = Vec::new();
        // Without disks there is nothing to take an instant of.
        if plan.volumes.is_empty() {
            return steps;
        }
        if let Some((snapshot, wish)) = &plan.source {
            steps.push(Box::new(instant("an instant of the machine".to_owned(), *snapshot, wish)));
        }
        let what = format!("template {}", plan.name);
        steps.push(Box::new(Make { agent: agent(), what: what.clone(), volumes: plan.volumes.clone() }));
        let volumes = plan.volumes.iter().map(|(volume, _)| volume.clone()).collect();
        let (vm, quiesce) = (as_vm(plan.template), Quiesce::No);
        let wish = TakeInstant { vm, generation: FIRST, volumes, memory: false, quiesce, deadline: HOLD };
        steps.push(Box::new(OwnInstant(instant(what, plan.own, &wish))));
        if let Some((snapshot, wish)) = &plan.source {
            let instants = vec![(*snapshot, wish.volumes.clone())];
            steps.push(Box::new(DeleteInstants { agent: agent(), instants, total: 1, before: 0, clears: true }));
        }
        steps
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, TemplatePlan>) -> Result<Value> {
        let mut template = tx.template(job.plan.template).await?;
        let event = match job.outcome {
            Outcome::Done => Some(TemplateEvent::Made),
            Outcome::Undone { .. } => None,
            Outcome::Broken { cause, left } => Some(TemplateEvent::Broke(reason(cause, left))),
        };
        match event {
            Some(event) => {
                template.state = template.after(&event)?;
                tx.update_template(&mut template).await?;
            }
            None => tx.delete_template(template.id, template.generation).await?,
        }
        if let Some((_, wish)) = &job.plan.source {
            // Whatever became of the template, nothing happened to the machine.
            leave_vm(tx, wish.vm, VmEvent::Undone, |_| {}).await?;
        }
        Ok(Value::Null)
    }
}

/// The template's own instant; undone, the host forgets the machine that it was of.
struct OwnInstant(Instant);

#[async_trait]
impl Step for OwnInstant {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        self.0.run(cx).await
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        self.0.undo(cx).await?;
        forget(&self.0.agent, self.0.wish.vm, FIRST).await
    }

    async fn probe(&self, cx: &Context) -> Result<Probe> {
        self.0.probe(cx).await
    }

    fn deadline(&self) -> Duration {
        self.0.deadline()
    }
}

/// A template to be deleted.
pub(crate) struct TemplateDeleteOrder {
    pub(crate) template: TemplateId,
    pub(crate) expected: Option<Generation>,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct TemplateDeletePlan {
    template: TemplateId,
    own: SnapshotId,
    volumes: Vec<VolumeRef>,
}

/// Deletes a template.
pub(crate) struct TemplateDelete {
    pub(crate) agent: Agent,
}

#[async_trait]
impl Kind for TemplateDelete {
    type Order = TemplateDeleteOrder;
    type Plan = TemplateDeletePlan;
    const KIND: JobKind = JobKind::TemplateDelete;

    async fn begin(
        &self,
        tx: &mut Transaction,
        job: JobId,
        order: TemplateDeleteOrder,
    ) -> Result<Begun<TemplateDeletePlan>> {
        let mut template = tx.template(order.template).await?;
        check_generation(template.name.as_str(), template.generation, order.expected)?;
        template.state = template.after(&TemplateEvent::BeginDelete(job))?;
        tx.update_template(&mut template).await?;
        tx.lock(job, &[(Resource::Template(template.id), Mode::Exclusive)]).await?;
        let title = format!("delete template {}", template.name);
        let volumes = template.hardware.volumes();
        let plan = TemplateDeletePlan { template: template.id, own: template.snapshot, volumes };
        Ok(Begun { plan, title, vms: Vec::new(), source: None, snapshot: None, template: Some(template.id) })
    }

    fn steps(&self, plan: &TemplateDeletePlan) -> Vec<Box<dyn Step>> {
        let agent = || self.agent.clone();
        let instants = vec![(plan.own, Vec::new())];
        let vm = as_vm(plan.template);
        vec![
            Box::new(DeleteInstants { agent: agent(), instants, total: 1, before: 0, clears: false }),
            Box::new(DeleteVolumes { agent: agent(), volumes: plan.volumes.clone(), clears: false }),
            Box::new(Forget { agent: agent(), vm, generation: FIRST }),
        ]
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, TemplateDeletePlan>) -> Result<Value> {
        let mut template = tx.template(job.plan.template).await?;
        let event = match job.outcome {
            Outcome::Done => {
                tx.delete_template(template.id, template.generation).await?;
                return Ok(Value::Null);
            }
            Outcome::Undone { .. } => TemplateEvent::DeleteUndone,
            Outcome::Broken { cause, left } => TemplateEvent::Broke(reason(cause, left)),
        };
        template.state = template.after(&event)?;
        tx.update_template(&mut template).await?;
        Ok(Value::Null)
    }
}
