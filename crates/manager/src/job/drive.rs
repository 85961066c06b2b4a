//! Driving one job from wherever it is to its end. Everything that decides is in the catalog: a course is made of it at the
//! start, after a restart, and whenever it is unknown what was written last.

use std::sync::Arc;
use std::time::Duration;

use keyframe_catalog::{Job, JobStep, StepState};
use keyframe_model::JobState;
use keyframe_model::agent::JobId;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Report;
use super::engine::Inner;
use super::record::{Halt, PARTS, cause};
use super::registry::AnyKind;
use super::{Context, Outcome, Outputs, Probe, Step};
use crate::{Error, ErrorKind, Result};

/// Clearing up gets this part of the patience that all else gets.
const CLEARING: u32 = 10;

/// A job on its way.
pub(super) struct Course<'a> {
    pub(super) engine: &'a Inner,
    pub(super) kind: Arc<dyn AnyKind>,
    pub(super) job: Job,
    pub(super) steps: Vec<Box<dyn Step>>,
    /// Of the steps that were begun; the n-th is of the n-th step.
    pub(super) records: Vec<JobStep>,
    pub(super) outputs: Arc<Outputs>,
    cancel: CancellationToken,
    /// The step that is recorded as begun was begun by somebody before.
    resumed: bool,
}

impl<'a> Course<'a> {
    /// The job as the catalog has it.
    pub(super) async fn of(
        engine: &'a Inner,
        id: JobId,
        cancel: &CancellationToken,
    ) -> std::result::Result<Course<'a>, Halt> {
        let mut tx = engine.catalog.read().await?;
        let job = tx.job(id).await?;
        let records = tx.steps(id).await?;
        drop(tx);
        let kind = engine.registry.any(job.kind).map_err(Halt::Hopeless)?.clone();
        let steps = engine.tap.wrap(job.kind, kind.steps(&job.plan).map_err(Halt::Hopeless)?);
        let in_order = records.iter().enumerate().all(|(at, record)| usize::try_from(record.index) == Ok(at));
        if !in_order || records.len() > steps.len() {
            let message = "the job's records do not fit its steps; it was begun by another version of Keyframe";
            return Err(Halt::Hopeless(Error::new(ErrorKind::Internal, message)));
        }
        let mut outputs = Outputs::default();
        for (at, record) in records.iter().enumerate() {
            if let Some(output) = &record.output {
                outputs.set(at, output.clone());
            }
        }
        if job.cancel {
            cancel.cancel();
        }
        let (outputs, cancel) = (Arc::new(outputs), cancel.clone());
        Ok(Course { engine, kind, job, steps, records, outputs, cancel, resumed: true })
    }

    /// Drives it to its end.
    pub(super) async fn go(mut self) -> std::result::Result<(), Halt> {
        loop {
            match self.job.state {
                JobState::Queued if self.job.cancel => self.end(Outcome::Undone { cause: Error::cancelled() }).await?,
                JobState::Queued => {
                    self.record_start().await?;
                    self.resumed = false;
                }
                JobState::Running => self.forward().await?,
                JobState::Undoing => self.backward().await?,
                JobState::Succeeded | JobState::Failed | JobState::Cancelled => return Ok(()),
            }
        }
    }

    /// Does the step that is intended, and intends the next.
    async fn forward(&mut self) -> std::result::Result<(), Halt> {
        if let Some(stuck) = self.records.iter().find(|record| record.state == StepState::Stuck) {
            tracing::debug!(job = %self.job.id, step = stuck.name, "ends where it was stuck");
            return self.end_broken().await;
        }
        let index = self.records.iter().filter(|record| record.state == StepState::Done).count();
        if index == self.steps.len() {
            return self.end(Outcome::Done).await;
        }
        let resumed = std::mem::take(&mut self.resumed);
        match self.run(index, resumed).await {
            Ok(output) => {
                let mut outputs = Outputs::clone(&self.outputs);
                outputs.set(index, output.clone());
                self.outputs = Arc::new(outputs);
                if index + 1 < self.steps.len() {
                    return self.record_done(index, output).await;
                }
                match self.record_end(&Outcome::Done, Some((index, output.clone()))).await? {
                    Ok(()) => Ok(()),
                    Err(e) => {
                        tracing::warn!(job = %self.job.id, error = &e as &dyn std::error::Error, "cannot finish");
                        self.record_done(index, output).await
                    }
                }
            }
            Err(e) if self.steps[index].clears() => {
                tracing::error!(job = %self.job.id, error = &e as &dyn std::error::Error, "left for later");
                self.record_left(index, &e).await
            }
            Err(e) if self.job.committed => {
                tracing::error!(job = %self.job.id, error = &e as &dyn std::error::Error, "given up");
                self.record_stuck(index, &e).await
            }
            Err(e) => {
                let e = if self.cancel.is_cancelled() { Error::cancelled() } else { e };
                tracing::warn!(job = %self.job.id, error = &e as &dyn std::error::Error, "undoing");
                self.record_turn(Some(index), &e).await
            }
        }
    }

    /// Undoes the last step that is not undone.
    async fn backward(&mut self) -> std::result::Result<(), Halt> {
        self.resumed = false;
        let left = |record: &JobStep| !matches!(record.state, StepState::Undone | StepState::Stuck);
        let Some(index) = self.records.iter().rposition(left) else {
            if self.job.left.is_empty() {
                return self.end(Outcome::Undone { cause: cause(self.job.error.as_ref()) }).await;
            }
            return self.end_broken().await;
        };
        if self.records[index].state != StepState::Undoing {
            return self.record_undone(None, Some(index)).await;
        }
        let failed = self.undo(index).await.err();
        if let Some(e) = &failed {
            tracing::error!(job = %self.job.id, error = e as &dyn std::error::Error, "cannot be undone");
        }
        let next = self.records[..index].iter().rposition(left);
        self.record_undone(Some((index, failed.as_ref())), next).await
    }

    /// One step, tried until it is done, hopeless, or out of patience.
    async fn run(&mut self, index: usize, resumed: bool) -> Result<Value> {
        let cancel = if self.job.committed { CancellationToken::new() } else { self.cancel.clone() };
        let cx = self.context(index, cancel);
        let step = &self.steps[index];
        let mut retry = Retry::new(self.engine);
        if step.clears() {
            // Nobody is to wait long for what can be done later.
            retry.end = Instant::now() + self.engine.limits.patience / CLEARING;
        }
        let mut probe = resumed;
        // A call whose answer was lost, in this process or one before, may still be at work and stand in its own way.
        let mut own = resumed;
        loop {
            let tried = self.watched(&cx, step.deadline(), async {
                if std::mem::replace(&mut probe, true) {
                    match step.probe(&cx).await? {
                        Probe::Done(output) => return Ok(output),
                        Probe::GiveUp(e) => return Err(e),
                        Probe::NotDone | Probe::Unknown => {}
                    }
                }
                step.run(&cx).await
            });
            let error = match tried.await {
                Ok(output) => return Ok(output),
                Err(e) => e,
            };
            own |= error.kind == ErrorKind::Unreachable;
            let worth = match error.kind {
                ErrorKind::Unreachable => true,
                ErrorKind::Busy => own || self.job.committed,
                _ => self.job.committed,
            };
            if !worth || cx.cancelled() {
                return Err(error);
            }
            cx.say(format!("{}: {error}; trying again", step.name()));
            if self.job.committed && !step.clears() && error.kind == ErrorKind::Unreachable {
                retry.renew();
            }
            retry.after(error, &cx).await?;
        }
    }

    /// One step's undoing, tried until it is undone or patience ends.
    async fn undo(&mut self, index: usize) -> Result<()> {
        let cx = self.context(index, CancellationToken::new());
        let step = &self.steps[index];
        let mut retry = Retry::new(self.engine);
        loop {
            match self.watched(&cx, step.deadline(), step.undo(&cx)).await {
                Ok(()) => return Ok(()),
                Err(e) => {
                    if e.kind == ErrorKind::Unreachable {
                        retry.renew();
                    }
                    retry.after(e, &cx).await?;
                }
            }
        }
    }

    /// One try, with its deadline, while its progress is brought into the catalog.
    async fn watched<T>(&self, cx: &Context, deadline: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            done = work => done,
            () = tokio::time::sleep(deadline) => Err(Error::new(
                ErrorKind::Deadline,
                format!("{} took longer than {} s", self.steps[at(cx.index)].name(), deadline.as_secs_f32()),
            )),
            // Beside the work and not after it: the work may be in a transaction that this one has to wait for.
            never = self.report(cx) => match never {},
        }
    }

    async fn report(&self, cx: &Context) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(self.engine.limits.report).await;
            let report = {
                let mut report = cx.report.lock();
                if !std::mem::take(&mut report.fresh) {
                    continue;
                }
                report.clone()
            };
            if let Err(e) = self.write_report(cx, &report).await {
                // The next record meets the same trouble and deals with it.
                tracing::debug!(job = %self.job.id, error = &e as &dyn std::error::Error, "progress is not recorded");
            }
        }
    }

    async fn write_report(&self, cx: &Context, report: &Report) -> Result<()> {
        let mut tx = self.engine.catalog.write().await?;
        let mut job = tx.job(self.job.id).await?;
        if job.state == JobState::Running && report.total > 0 {
            let part = u128::from(report.done.min(report.total)) * u128::from(PARTS) / u128::from(report.total);
            job.progress = self.progress(at(cx.index));
            job.progress.done += u64::try_from(part).unwrap_or(PARTS);
        }
        if let Some(text) = &report.text {
            job.message.clone_from(text);
        }
        tx.update_job(&mut job).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Ends the job; what its kind does not manage is undone where it can be, and said where it cannot.
    async fn end(&mut self, outcome: Outcome) -> std::result::Result<(), Halt> {
        let Err(e) = self.record_end(&outcome, None).await? else { return Ok(()) };
        tracing::error!(job = %self.job.id, error = &e as &dyn std::error::Error, "cannot finish");
        match outcome {
            Outcome::Done if !self.job.committed => self.record_turn(None, &e).await,
            Outcome::Done | Outcome::Undone { .. } => {
                let broken = Outcome::Broken { cause: e, left: Vec::new() };
                self.record_end(&broken, None).await?.map_err(Halt::Hopeless)
            }
            Outcome::Broken { .. } => Err(Halt::Hopeless(e)),
        }
    }

    async fn end_broken(&mut self) -> std::result::Result<(), Halt> {
        let cause = cause(self.job.error.as_ref());
        self.end(Outcome::Broken { cause, left: self.job.left.clone() }).await
    }

    fn context(&self, index: usize, cancel: CancellationToken) -> Context {
        Context {
            job: self.job.id,
            index: u32::try_from(index).unwrap_or(u32::MAX),
            catalog: self.engine.catalog.clone(),
            outputs: self.outputs.clone(),
            cancel,
            report: Arc::new(Mutex::default()),
        }
    }
}

fn at(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// Longer and longer waits between tries, until patience ends. Where there is no way back a host that cannot be reached is
/// waited for however long it takes: nothing is wrong with the machine, and giving up would say so.
struct Retry {
    wait: Duration,
    longest: Duration,
    patience: Duration,
    end: Instant,
}

impl Retry {
    fn new(engine: &Inner) -> Retry {
        let limits = &engine.limits;
        let (patience, end) = (limits.patience, Instant::now() + limits.patience);
        Retry { wait: limits.first_wait, longest: limits.longest_wait, patience, end }
    }

    /// Patience begins anew.
    fn renew(&mut self) {
        self.end = Instant::now() + self.patience;
    }

    /// Waits, or returns the error when patience has ended or somebody cancels.
    async fn after(&mut self, error: Error, cx: &Context) -> Result<()> {
        if Instant::now() + self.wait > self.end {
            return Err(error);
        }
        tracing::info!(job = %cx.job, error = &error as &dyn std::error::Error, "trying again");
        let wait = self.wait;
        self.wait = (wait * 2).min(self.longest);
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = cx.until_cancelled() => Err(error),
        }
    }
}
