//! All kinds of jobs, with their types forgotten.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use keyframe_catalog::{Job, StepState, Transaction};
use keyframe_model::JobKind;
use serde_json::Value;

use super::{Ending, Kind, Outcome, Outputs, Step};
use crate::{Error, ErrorKind, Result};

/// The kinds of jobs that an engine can do.
#[derive(Default)]
pub struct Registry(HashMap<JobKind, Arc<dyn AnyKind>>);

impl Registry {
    /// None so far.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// And this one.
    #[must_use]
    pub fn with<K: Kind>(mut self, kind: K) -> Registry {
        self.0.insert(K::KIND, Arc::new(Erased(kind)));
        self
    }

    /// Those that are known.
    #[cfg(test)]
    pub(crate) fn kinds(&self) -> std::collections::BTreeSet<JobKind> {
        self.0.keys().copied().collect()
    }

    pub(super) fn any(&self, kind: JobKind) -> Result<&Arc<dyn AnyKind>> {
        self.0.get(&kind).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("this version of Keyframe knows no jobs of the kind {kind:?}"))
        })
    }

    pub(super) fn typed<K: Kind>(&self) -> Result<&K> {
        let any: &dyn Any = self.any(K::KIND)?.as_any();
        any.downcast_ref::<Erased<K>>().map(|erased| &erased.0).ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("jobs of the kind {:?} belong to another type", K::KIND))
        })
    }
}

/// A kind whose types are forgotten.
#[async_trait]
pub(super) trait AnyKind: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn steps(&self, plan: &Value) -> Result<Vec<Box<dyn Step>>>;
    async fn passed(&self, tx: &mut Transaction, job: &Job, step: usize, output: &Value) -> Result<()>;
    async fn finish(
        &self,
        tx: &mut Transaction,
        job: &Job,
        outputs: &Outputs,
        states: &[StepState],
        outcome: &Outcome,
    ) -> Result<Value>;
}

struct Erased<K>(K);

impl<K: Kind> Erased<K> {
    fn plan(plan: &Value) -> Result<K::Plan> {
        serde::Deserialize::deserialize(plan).map_err(|e| Error {
            kind: ErrorKind::Internal,
            message: "the plan of the job is not understood by this version of Keyframe".into(),
            source: Some(Box::new(e)),
        })
    }
}

#[async_trait]
impl<K: Kind> AnyKind for Erased<K> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn steps(&self, plan: &Value) -> Result<Vec<Box<dyn Step>>> {
        Ok(self.0.steps(&Self::plan(plan)?))
    }

    async fn passed(&self, tx: &mut Transaction, job: &Job, step: usize, output: &Value) -> Result<()> {
        self.0.passed(tx, job.id, &Self::plan(&job.plan)?, step, output).await
    }

    async fn finish(
        &self,
        tx: &mut Transaction,
        job: &Job,
        outputs: &Outputs,
        states: &[StepState],
        outcome: &Outcome,
    ) -> Result<Value> {
        let plan = Self::plan(&job.plan)?;
        self.0.finish(tx, &Ending { id: job.id, plan: &plan, outputs, states, outcome }).await
    }
}
