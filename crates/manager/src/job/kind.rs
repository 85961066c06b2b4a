//! What a kind of job consists of.

use async_trait::async_trait;
use keyframe_catalog::{StepState, Transaction};
use keyframe_model::JobKind;
use keyframe_model::agent::{JobId, SnapshotId, TemplateId, VmId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Outputs, Step};
use crate::{Error, Result};

/// A kind of job. Holds what its steps need: clients of agents, settings.
#[async_trait]
pub trait Kind: Send + Sync + 'static {
    /// What is asked for.
    type Order: Send + Sync + 'static;
    /// All that is decided before the first step: identifiers, names, hardware, generations. Kept with the job, so a later
    /// version must still be able to read it.
    type Plan: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Which.
    const KIND: JobKind;

    /// Checks the order, makes the machine busy, adds what is to be, takes locks. In the transaction that adds the job: if it
    /// fails, nothing has happened.
    async fn begin(&self, tx: &mut Transaction, job: JobId, order: Self::Order) -> Result<Begun<Self::Plan>>;

    /// The steps of a plan: always the same ones for the same plan, because they are made anew after a restart.
    fn steps(&self, plan: &Self::Plan) -> Vec<Box<dyn Step>>;

    /// Lets go of what the job needs no longer once the step at that place is done: in the transaction that records it as done,
    /// which happens once however often the step is run. Not called for the last step, after which the job [ends](Kind::finish),
    /// whose `finish` has to see what is gone already, nor when the job turns back after that step.
    async fn passed(
        &self,
        _tx: &mut Transaction,
        _job: JobId,
        _plan: &Self::Plan,
        _step: usize,
        _output: &Value,
    ) -> Result<()> {
        Ok(())
    }

    /// Leaves all that [`begin`](Kind::begin) made busy at rest, whatever the outcome, and says what came of it. In the
    /// transaction that ends the job. Must not fail when the outcome is [`Broken`](Outcome::Broken).
    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, Self::Plan>) -> Result<Value>;
}

/// A job that may begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Begun<P> {
    /// What was decided.
    pub plan: P,
    /// What the job does, for people: "snapshot web-1 as nightly".
    pub title: String,
    /// The machines that it makes or works on.
    pub vms: Vec<VmId>,
    /// The machine that it copies, to which nothing happens but that it may be busy meanwhile.
    pub source: Option<VmId>,
    /// The snapshot that it makes or works on.
    pub snapshot: Option<SnapshotId>,
    /// The template that it makes or works on.
    pub template: Option<TemplateId>,
}

impl<P> Begun<P> {
    /// A job about nothing in particular; set the rest.
    pub fn new(plan: P, title: impl Into<String>) -> Begun<P> {
        Begun { plan, title: title.into(), vms: Vec::new(), source: None, snapshot: None, template: None }
    }

    /// About that machine.
    pub fn vm(mut self, vm: VmId) -> Begun<P> {
        self.vms.push(vm);
        self
    }
}

/// A job that ends.
#[derive(Debug)]
pub struct Ending<'a, P> {
    /// Which.
    pub id: JobId,
    /// What was decided.
    pub plan: &'a P,
    /// What the steps that were done found out.
    pub outputs: &'a Outputs,
    /// What became of the steps that were begun, by their place.
    pub states: &'a [StepState],
    /// How it ends.
    pub outcome: &'a Outcome,
}

impl<P> Ending<'_, P> {
    /// The step at that place was done, and nobody has tried to undo it.
    pub fn done(&self, step: usize) -> bool {
        self.states.get(step) == Some(&StepState::Done)
    }

    /// A step after that place could be neither done nor undone.
    pub fn stuck_after(&self, step: usize) -> bool {
        self.states.iter().skip(step + 1).any(|state| *state == StepState::Stuck)
    }
}

/// How a job ends.
#[derive(Debug)]
pub enum Outcome {
    /// All steps are done.
    Done,
    /// All that was begun is undone; everything is as before.
    Undone {
        /// Why; its kind is `Cancelled` if somebody wished so.
        cause: Error,
    },
    /// Something could be neither done nor undone.
    Broken {
        /// Why.
        cause: Error,
        /// What, for people.
        left: Vec<String>,
    },
}
