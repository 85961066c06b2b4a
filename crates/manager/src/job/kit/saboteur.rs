//! Stands between the engine and the steps, and between the engine and its records: does things twice, fails, kills, cancels.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::Leftover;
use keyframe_model::JobKind;
use keyframe_model::agent::JobId;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};

use crate::job::tap::Tap;
use crate::job::{Context, Probe, Step};
use crate::{Error, ErrorKind, Result};

/// What is done to one run of a job. Each happens once at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sabotage {
    /// Every step is run, and undone, twice.
    pub(super) twice: bool,
    /// A step fails.
    pub(super) fail: Option<(usize, When)>,
    /// The engine is killed.
    pub(super) kill: Option<Point>,
    /// The job is cancelled after so many records.
    pub(super) cancel: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    BeforeEffect,
    AfterEffect,
}

/// Where an engine is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Point {
    /// Right after this record, counted from 0.
    Record(usize),
    /// When this step has had its effect, which is not recorded yet.
    Effect(usize),
    /// When this step's undoing has had its effect.
    Undone(usize),
}

/// What a saboteur and the steps that it stands before share.
pub(super) struct Plot {
    sabotage: Sabotage,
    failed: AtomicBool,
    records: AtomicUsize,
    /// Where the engine is to be killed, it waits for ever.
    pub(super) killed: Notify,
    /// Where the job is to be cancelled, it waits until that has happened.
    pub(super) cancels: Notify,
    /// Where a step is to fail, it waits until that is noticed.
    pub(super) fails: Notify,
    pub(super) go_on: Semaphore,
}

pub(super) struct Saboteur(pub(super) Arc<Plot>);

impl Plot {
    pub(super) fn new(sabotage: Sabotage) -> Arc<Plot> {
        Arc::new(Plot {
            sabotage,
            failed: AtomicBool::new(false),
            records: AtomicUsize::new(0),
            killed: Notify::new(),
            cancels: Notify::new(),
            fails: Notify::new(),
            go_on: Semaphore::new(0),
        })
    }

    pub(super) fn records(&self) -> usize {
        self.records.load(Ordering::SeqCst)
    }

    async fn reach(&self, point: Point) {
        if self.sabotage.kill == Some(point) {
            self.killed.notify_one();
            std::future::pending::<()>().await;
        }
    }

    async fn wait(&self, for_what: &Notify) {
        for_what.notify_one();
        if let Ok(permit) = self.go_on.acquire().await {
            permit.forget();
        }
    }

    async fn fails(&self, index: usize, when: When) -> Result<()> {
        if self.sabotage.fail == Some((index, when)) && !self.failed.swap(true, Ordering::SeqCst) {
            self.wait(&self.fails).await;
            return Err(Error::new(ErrorKind::Internal, format!("step {index} is made to fail ({when:?})")));
        }
        Ok(())
    }
}

#[async_trait]
impl Tap for Saboteur {
    fn wrap(&self, _kind: JobKind, steps: Vec<Box<dyn Step>>) -> Vec<Box<dyn Step>> {
        let wrap = |(index, inner)| Box::new(Wrapped { inner, index, plot: self.0.clone() }) as Box<dyn Step>;
        steps.into_iter().enumerate().map(wrap).collect()
    }

    async fn recorded(&self, _job: JobId, _what: &str) {
        let record = self.0.records.fetch_add(1, Ordering::SeqCst);
        if self.0.sabotage.cancel == Some(record) {
            self.0.wait(&self.0.cancels).await;
        }
        self.0.reach(Point::Record(record)).await;
    }
}

struct Wrapped {
    inner: Box<dyn Step>,
    index: usize,
    plot: Arc<Plot>,
}

#[async_trait]
impl Step for Wrapped {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        self.plot.fails(self.index, When::BeforeEffect).await?;
        if self.plot.sabotage.twice {
            self.inner.run(cx).await?;
        }
        let output = self.inner.run(cx).await?;
        self.plot.fails(self.index, When::AfterEffect).await?;
        self.plot.reach(Point::Effect(self.index)).await;
        Ok(output)
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        if self.plot.sabotage.twice {
            self.inner.undo(cx).await?;
        }
        self.inner.undo(cx).await?;
        self.plot.reach(Point::Undone(self.index)).await;
        Ok(())
    }

    async fn probe(&self, cx: &Context) -> Result<Probe> {
        self.inner.probe(cx).await
    }

    fn deadline(&self) -> Duration {
        self.inner.deadline()
    }

    fn commits(&self) -> bool {
        self.inner.commits()
    }

    fn clears(&self) -> bool {
        self.inner.clears()
    }

    fn leaves(&self) -> Vec<Leftover> {
        self.inner.leaves()
    }
}
