//! What a step gets to know, and how it reports.

use std::sync::Arc;

use keyframe_catalog::Catalog;
use keyframe_model::agent::JobId;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{Error, ErrorKind, Result};

/// What a step works with.
pub struct Context {
    pub(super) job: JobId,
    pub(super) index: u32,
    pub(super) catalog: Catalog,
    pub(super) outputs: Arc<Outputs>,
    pub(super) cancel: CancellationToken,
    pub(super) report: Arc<Mutex<Report>>,
}

/// What a step said of itself since it was last looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) text: Option<String>,
    pub(super) fresh: bool,
}

/// What the steps of a job returned, by their place.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Outputs(pub(super) Vec<Option<Value>>);

impl Context {
    /// The job.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// The same for every try of this step, and for no other: what makes calls repeatable.
    pub fn key(&self) -> String {
        format!("{}/{}", self.job, self.index)
    }

    /// The catalog. What a step changes there it has to undo like everything else.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// What an earlier step returned.
    pub fn output<T: DeserializeOwned>(&self, step: usize) -> Result<T> {
        self.outputs.get(step)
    }

    /// What all the earlier steps returned.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// How far this step is, in any unit.
    pub fn progress(&self, done: u64, total: u64) {
        let mut report = self.report.lock();
        (report.done, report.total, report.fresh) = (done, total, true);
    }

    /// What this step is doing just now, for people.
    pub fn say(&self, text: impl Into<String>) {
        let mut report = self.report.lock();
        (report.text, report.fresh) = (Some(text.into()), true);
    }

    /// Somebody wishes the job undone. A long step asks now and then, and returns [`Error::cancelled`].
    pub fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Returns when somebody wishes the job undone.
    pub async fn until_cancelled(&self) {
        self.cancel.cancelled().await;
    }
}

impl Outputs {
    /// What the step at that place returned.
    pub fn get<T: DeserializeOwned>(&self, step: usize) -> Result<T> {
        let value = self.raw(step).cloned();
        let value = value.ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("step {step} of the job has returned nothing so far"))
        })?;
        serde_json::from_value(value).map_err(|e| Error {
            kind: ErrorKind::Internal,
            message: format!("what step {step} of the job returned is not understood"),
            source: Some(Box::new(e)),
        })
    }

    /// The same as it was kept.
    pub fn raw(&self, step: usize) -> Option<&Value> {
        self.0.get(step)?.as_ref()
    }

    pub(super) fn set(&mut self, step: usize, value: Value) {
        if self.0.len() <= step {
            self.0.resize(step + 1, None);
        }
        self.0[step] = Some(value);
    }
}
