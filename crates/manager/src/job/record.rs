//! What is written down of a job, and when. Each function here is one transaction, and nothing else writes a job's state.

use keyframe_catalog::{ErrorKind as CatalogErrorKind, Job, JobFailure, JobStep, Leftover, StepState};
use keyframe_model::agent::Timestamp;
use keyframe_model::{JobEvent, JobState, Progress};
use serde_json::Value;

use super::drive::Course;
use super::kind::Outcome;
use super::words::named;
use crate::{Error, ErrorKind, Result};

/// Parts of a step in a job's progress.
pub(super) const PARTS: u64 = 100;

/// Why a job cannot go on here and now.
#[derive(Debug)]
pub(super) enum Halt {
    /// The catalog cannot be reached: what was written last is unknown. Read it again and go on from there.
    Again(Error),
    /// Somebody else is the manager.
    Fenced(Error),
    /// Neither the kind nor the catalog can make sense of it.
    Hopeless(Error),
}

impl From<keyframe_catalog::Error> for Halt {
    fn from(error: keyframe_catalog::Error) -> Halt {
        match error.kind {
            CatalogErrorKind::Unavailable => Halt::Again(error.into()),
            CatalogErrorKind::Fenced => Halt::Fenced(error.into()),
            _ => Halt::Hopeless(error.into()),
        }
    }
}

impl Halt {
    /// An error from a kind: if the catalog is behind it, it says nothing about the kind.
    fn of(error: Error) -> std::result::Result<Error, Halt> {
        let catalog = error.source.as_ref().and_then(|source| source.downcast_ref::<keyframe_catalog::Error>());
        match catalog.map(|catalog| catalog.kind) {
            Some(CatalogErrorKind::Unavailable) => Err(Halt::Again(error)),
            Some(CatalogErrorKind::Fenced) => Err(Halt::Fenced(error)),
            _ => Ok(error),
        }
    }
}

impl Course<'_> {
    /// The job begins, and its first step is intended; unless somebody has cancelled it meanwhile.
    pub(super) async fn record_start(&mut self) -> std::result::Result<(), Halt> {
        let first = self.intent(0);
        self.record("start", &[], |job| {
            if job.cancel {
                return Ok(Vec::new());
            }
            job.state = job.state.after(JobEvent::Start)?;
            job.started = Some(Timestamp::now());
            Ok(intend(job, first))
        })
        .await
    }

    /// A step is done; the next is intended, unless somebody has cancelled the job meanwhile.
    pub(super) async fn record_done(&mut self, index: usize, output: Value) -> std::result::Result<(), Halt> {
        self.record_over(index, output, &[], None).await
    }

    /// A step that clears up could not be done, which is left for later; the next is intended.
    pub(super) async fn record_left(&mut self, index: usize, cause: &Error) -> std::result::Result<(), Halt> {
        let cause = self.named(cause).await;
        let text = format!("{}: {cause}; it is tried again", self.steps[index].name());
        let left = self.steps[index].leaves();
        self.record_over(index, Value::Null, &left, Some(text)).await
    }

    async fn record_over(
        &mut self,
        index: usize,
        output: Value,
        left: &[Leftover],
        text: Option<String>,
    ) -> std::result::Result<(), Halt> {
        let done = self.done(index, output.clone());
        let next = self.intent(index + 1);
        let passed = next.is_some().then_some((index, &output));
        self.record_with("done", left, passed, |job| {
            job.left.extend(text);
            let mut steps = vec![done];
            if turns(job) && next.is_some() {
                turn(job, &Error::cancelled())?;
            } else {
                steps.extend(intend(job, next));
            }
            Ok(steps)
        })
        .await
    }

    /// The job failed or was cancelled: from here on it is undone, beginning with the step that it failed at.
    pub(super) async fn record_turn(&mut self, at: Option<usize>, cause: &Error) -> std::result::Result<(), Halt> {
        let cause = &self.named(cause).await;
        let step = at.and_then(|index| self.again(index, StepState::Undoing, Some(cause)));
        self.record("turn", &[], |job| {
            turn(job, cause)?;
            Ok(step.into_iter().collect())
        })
        .await
    }

    /// A step is undone or stuck, or nothing was to be recorded of one; undoing the next is intended.
    pub(super) async fn record_undone(
        &mut self,
        undone: Option<(usize, Option<&Error>)>,
        next: Option<usize>,
    ) -> std::result::Result<(), Halt> {
        let mut steps = Vec::new();
        let mut left = None;
        let mut leftovers = Vec::new();
        let failure = match undone.and_then(|(_, failure)| failure) {
            Some(failure) => Some(self.named(failure).await),
            None => None,
        };
        if let Some((index, _)) = undone {
            let failure = failure.as_ref();
            let state = if failure.is_some() { StepState::Stuck } else { StepState::Undone };
            let step = self.again(index, state, failure);
            leftovers = failure.map_or_else(Vec::new, |_| self.steps[index].leaves());
            left = failure.zip(step.as_ref()).map(|(failure, step)| format!("{}: {failure}", step.name));
            steps.extend(step);
        }
        steps.extend(next.and_then(|index| self.again(index, StepState::Undoing, None)));
        let name = next.map(|index| format!("undoing: {}", self.steps[index].name()));
        self.record("undone", &leftovers, |job| {
            job.left.extend(left);
            job.message = name.unwrap_or_default();
            Ok(steps)
        })
        .await
    }

    /// A step that commits could not be done.
    pub(super) async fn record_stuck(&mut self, index: usize, cause: &Error) -> std::result::Result<(), Halt> {
        let cause = &self.named(cause).await;
        let step = self.again(index, StepState::Stuck, Some(cause));
        let left: Vec<String> = self.steps[index..].iter().map(|step| format!("not done: {}", step.name())).collect();
        self.record("stuck", &[], |job| {
            job.error = Some(failure(cause));
            job.left = left;
            Ok(step.into_iter().collect())
        })
        .await
    }

    /// The job ends: what its kind makes of that, and its own state. `Ok(Err(…))` if the kind does not manage.
    pub(super) async fn record_end(
        &mut self,
        outcome: &Outcome,
        last: Option<(usize, Value)>,
    ) -> std::result::Result<Result<()>, Halt> {
        let last = last.map(|(index, output)| self.done(index, output));
        let mut tx = self.engine.catalog.write().await?;
        let mut job = tx.job(self.job.id).await?;
        let mut states: Vec<StepState> = self.records.iter().map(|record| record.state).collect();
        if let Some(state) = last.as_ref().and_then(|last| states.get_mut(usize::try_from(last.index).ok()?)) {
            *state = StepState::Done;
        }
        let finished = self.kind.finish(&mut tx, &job, &self.outputs, &states, outcome).await;
        let result = match finished {
            Ok(result) => result,
            Err(e) => return Ok(Err(Halt::of(e)?)),
        };
        tx.unlock(job.id).await?;
        job.result = Some(result);
        job.ended = Some(Timestamp::now());
        job.message = String::new();
        job.state = match outcome {
            Outcome::Done => {
                job.progress.done = job.progress.total;
                JobState::Succeeded
            }
            Outcome::Undone { cause } if cause.kind == ErrorKind::Cancelled => JobState::Cancelled,
            Outcome::Undone { .. } | Outcome::Broken { .. } => JobState::Failed,
        };
        if let Outcome::Undone { cause } | Outcome::Broken { cause, .. } = outcome {
            job.error = Some(failure(cause));
        }
        if let Outcome::Broken { left, .. } = outcome {
            job.left.clone_from(left);
        }
        if let Some(step) = &last {
            tx.put_step(step).await?;
        }
        tx.update_job(&mut job).await?;
        tx.commit().await?;
        self.remember(last);
        self.job = job;
        self.engine.tap.recorded(self.job.id, "end").await;
        Ok(Ok(()))
    }

    /// The failure in words that people know; as it is if the catalog does not answer.
    async fn named(&self, failure: &Error) -> Error {
        let message = match self.engine.catalog.read().await {
            Ok(mut tx) => named(&mut tx, &failure.message).await,
            Err(_) => failure.message.clone(),
        };
        Error::new(failure.kind, message)
    }

    async fn record(
        &mut self,
        what: &str,
        left: &[Leftover],
        change: impl FnOnce(&mut Job) -> Result<Vec<JobStep>>,
    ) -> std::result::Result<(), Halt> {
        self.record_with(what, left, None, change).await
    }

    /// The same, and what the kind makes of it that the step at the place `passed` is done.
    async fn record_with(
        &mut self,
        what: &str,
        left: &[Leftover],
        passed: Option<(usize, &Value)>,
        change: impl FnOnce(&mut Job) -> Result<Vec<JobStep>>,
    ) -> std::result::Result<(), Halt> {
        let mut tx = self.engine.catalog.write().await?;
        let mut job = tx.job(self.job.id).await?;
        if let Some((step, output)) = passed
            && !turns(&job)
        {
            let passed = self.kind.passed(&mut tx, &job, step, output).await;
            passed.map_err(|e| Halt::of(e).map_or_else(|halt| halt, Halt::Hopeless))?;
        }
        let steps = change(&mut job).map_err(Halt::Hopeless)?;
        for step in &steps {
            tx.put_step(step).await?;
        }
        for left in left {
            tx.put_leftover(left).await?;
        }
        tx.update_job(&mut job).await?;
        tx.commit().await?;
        self.remember(steps);
        self.job = job;
        self.engine.tap.recorded(self.job.id, what).await;
        Ok(())
    }

    fn remember(&mut self, steps: impl IntoIterator<Item = JobStep>) {
        for step in steps {
            match self.records.iter_mut().find(|record| record.index == step.index) {
                Some(record) => *record = step,
                None => self.records.push(step),
            }
        }
    }

    fn intent(&self, index: usize) -> Option<(JobStep, bool, Progress)> {
        let step = self.steps.get(index)?;
        let record = JobStep {
            job: self.job.id,
            index: u32::try_from(index).ok()?,
            name: step.name(),
            state: StepState::Started,
            output: None,
            error: None,
            started: Timestamp::now(),
            ended: None,
        };
        Some((record, step.commits(), self.progress(index)))
    }

    fn done(&self, index: usize, output: Value) -> JobStep {
        let mut step = self.records[index].clone();
        (step.state, step.output, step.error) = (StepState::Done, Some(output), None);
        step.ended = Some(Timestamp::now());
        step
    }

    fn again(&self, index: usize, state: StepState, failure: Option<&Error>) -> Option<JobStep> {
        let mut step = self.records.get(index)?.clone();
        step.state = state;
        step.error = failure.map(ToString::to_string).or(step.error);
        step.ended = matches!(state, StepState::Undone | StepState::Stuck).then(Timestamp::now);
        Some(step)
    }

    pub(super) fn progress(&self, done: usize) -> Progress {
        let parts = |steps: usize| u64::try_from(steps).unwrap_or(u64::MAX).saturating_mul(PARTS);
        Progress { done: parts(done), total: parts(self.steps.len()) }
    }
}

fn intend(job: &mut Job, next: Option<(JobStep, bool, Progress)>) -> Vec<JobStep> {
    let Some((step, commits, progress)) = next else { return Vec::new() };
    job.committed |= commits;
    job.message.clone_from(&step.name);
    job.progress = progress;
    vec![step]
}

/// Somebody has called it off, and it can be undone.
fn turns(job: &Job) -> bool {
    job.cancel && !job.committed
}

fn turn(job: &mut Job, cause: &Error) -> Result<()> {
    job.state = job.state.after(JobEvent::StepFailed)?;
    job.error = Some(failure(cause));
    job.message = "undoing".to_owned();
    Ok(())
}

/// What is kept of an error: its kind and sentence. The causes behind it are in the log.
pub(super) fn failure(error: &Error) -> JobFailure {
    let kind = match serde_json::to_value(error.kind) {
        Ok(Value::String(kind)) => kind,
        _ => "internal".to_owned(),
    };
    JobFailure { kind, message: error.message.clone() }
}

/// The error that was kept.
pub(super) fn cause(failure: Option<&JobFailure>) -> Error {
    match failure {
        None => Error::new(ErrorKind::Internal, "the reason is not known"),
        Some(failure) => {
            let kind = serde_json::from_value(Value::String(failure.kind.clone())).unwrap_or(ErrorKind::Internal);
            Error::new(kind, failure.message.clone())
        }
    }
}
