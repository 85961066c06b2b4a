//! A test for kinds of jobs: one call, and every step of a kind is run twice, fails before and after its effect, is undone once
//! and twice, the engine is killed at every point at which it could be, and each call to the host is lost, or its answer is.
//! Whatever is done to a job, the world after it is either as after a job that nothing was done to, or as before; and a host
//! that is away for a while is no reason to fail.

mod compare;
mod loss;
mod saboteur;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::{Catalog, Job};
use keyframe_model::JobState;
use serde_json::{Value, json};

use self::compare::{difference, nameless, steady};
use self::loss::losses;
use self::saboteur::{Plot, Point, Sabotage, Saboteur, When};
use super::tap::{NoTap, SharedTap};
use super::{Engine, Kind, Limits, Registry};

pub use self::loss::Loss;

/// A world in which a job can run: a catalog, and what a kind's steps work on. Made anew for every run, always in the same way.
#[async_trait]
pub trait World: Send + Sync {
    /// What is tested.
    type Kind: Kind;

    /// The catalog.
    fn catalog(&self) -> &Catalog;

    /// The kind, as a manager that has just started makes it.
    fn kind(&self) -> Self::Kind;

    /// What is ordered.
    fn order(&self) -> <Self::Kind as Kind>::Order;

    /// All there is outside of the catalog, in a fixed order.
    async fn look(&self) -> Value;

    /// What of a world is as before after a job that failed; all of it, unless the kind promises less.
    fn promised(&self, world: Value) -> Value {
        world
    }

    /// What was asked of the host so far, in order; nothing, if the kind asks no host.
    fn calls(&self) -> Vec<String> {
        Vec::new()
    }

    /// Has it lost from now on.
    fn lose(&self, _loss: &Loss) {}
}

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Steps of the kind.
    pub steps: usize,
    /// Records of a job that nothing is done to.
    pub records: usize,
    /// What it asks of the host.
    pub calls: usize,
    /// Jobs that were run.
    pub runs: usize,
}

/// How a kind breaks its promise.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{scenario}: {what}")]
pub struct Violation {
    /// What was done to the job.
    pub scenario: String,
    /// What was found, for people.
    pub what: String,
}

/// How long a task may go on after its job's end is known.
const SETTLE: Duration = Duration::from_millis(500);
/// A job that has not ended by now is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

const LIMITS: Limits = Limits {
    jobs: 4,
    patience: Duration::from_secs(5),
    first_wait: Duration::from_millis(1),
    longest_wait: Duration::from_millis(20),
    report: Duration::from_millis(50),
};

/// Does all of it, and stops at the first violation.
pub async fn check<W: World, F: Future<Output = W>>(make: impl Fn() -> F) -> Result<Report, Violation> {
    let calm = Sabotage::default();
    let first = Run::of(&make().await, calm, None).await?;
    if first.job.state != JobState::Succeeded {
        return Err(violation(calm, None, format!("fails undisturbed: {:?}, {:?}", first.job.error, first.job.left)));
    }
    let mut kit = Kit { make, done: first.after.clone(), runs: 1 };
    let steps = first.steps;
    kit.check(Sabotage { twice: true, ..calm }).await?;
    let mut undone = None;
    for step in 0..steps {
        for when in [When::BeforeEffect, When::AfterEffect] {
            for twice in [false, true] {
                let sabotage = Sabotage { twice, fail: Some((step, when)), ..calm };
                let run = kit.check(sabotage).await?;
                if run.job.state != JobState::Succeeded {
                    undone = Some((step, run.records, run.calls, run.turned));
                }
            }
        }
    }
    for step in 0..steps {
        kit.check(Sabotage { kill: Some(Point::Effect(step)), ..calm }).await?;
    }
    for record in 0..first.records {
        kit.check(Sabotage { kill: Some(Point::Record(record)), ..calm }).await?;
        kit.check(Sabotage { cancel: Some(record), ..calm }).await?;
    }
    for loss in losses(&first.calls, 0) {
        let run = kit.judge(calm, Some(&loss)).await?;
        if run.job.state != JobState::Succeeded {
            let what = format!("a host that is away makes it fail: {:?}", run.job.error);
            return Err(violation(calm, Some(&loss), what));
        }
        let result = |of: &Run| nameless(json!(of.job.result));
        if let Some(difference) = difference(&result(&first), &result(&run)) {
            return Err(violation(calm, Some(&loss), format!("what came of it is told otherwise: {difference}")));
        }
    }
    // The last step that can be undone at all undoes everything before it, too.
    if let Some((last, records, calls, turned)) = undone {
        let fail = Some((last, When::AfterEffect));
        for record in last + 1..records {
            kit.check(Sabotage { fail, kill: Some(Point::Record(record)), ..calm }).await?;
        }
        for step in 0..=last {
            kit.check(Sabotage { fail, kill: Some(Point::Undone(step)), ..calm }).await?;
        }
        for loss in losses(&calls, turned) {
            kit.judge(Sabotage { fail, ..calm }, Some(&loss)).await?;
        }
    }
    Ok(Report { steps, records: first.records, calls: first.calls.len(), runs: kit.runs })
}

struct Kit<M> {
    make: M,
    done: Value,
    runs: usize,
}

impl<M> Kit<M> {
    async fn check<W: World, F: Future<Output = W>>(&mut self, sabotage: Sabotage) -> Result<Run, Violation>
    where
        M: Fn() -> F,
    {
        self.judge(sabotage, None).await
    }

    async fn judge<W: World, F: Future<Output = W>>(
        &mut self,
        sabotage: Sabotage,
        loss: Option<&Loss>,
    ) -> Result<Run, Violation>
    where
        M: Fn() -> F,
    {
        self.runs += 1;
        let world = (self.make)().await;
        let run = Run::of(&world, sabotage, loss).await?;
        if !run.job.left.is_empty() {
            return Err(violation(sabotage, loss, format!("the job leaves something behind: {:?}", run.job.left)));
        }
        let (as_what, difference) = match run.job.state {
            JobState::Succeeded => {
                ("as after an undisturbed job", difference(&nameless(self.done.clone()), &nameless(run.after.clone())))
            }
            _ => {
                let promised = |whole: &Value| steady(world.promised(whole.clone()));
                ("as before", difference(&promised(&run.before), &promised(&run.after)))
            }
        };
        if let Some(difference) = difference {
            return Err(violation(
                sabotage,
                loss,
                format!("the job has {:?}, but the world is not {as_what}: {difference}", run.job.state),
            ));
        }
        Ok(run)
    }
}

/// One job in a world of its own.
struct Run {
    before: Value,
    after: Value,
    job: Job,
    steps: usize,
    records: usize,
    calls: Vec<String>,
    /// Of the calls, those before a step failed.
    turned: usize,
}

impl Run {
    async fn of<W: World>(world: &W, sabotage: Sabotage, loss: Option<&Loss>) -> Result<Run, Violation> {
        match tokio::time::timeout(PATIENCE, Run::make(world, sabotage, loss)).await {
            Ok(run) => run.map_err(|what| violation(sabotage, loss, what)),
            Err(_) => Err(violation(sabotage, loss, "the job is stuck".to_owned())),
        }
    }

    async fn make<W: World>(world: &W, sabotage: Sabotage, loss: Option<&Loss>) -> Result<Run, String> {
        let before = look(world).await?;
        let asked = world.calls().len();
        if let Some(loss) = loss {
            world.lose(loss);
        }
        let plot = Plot::new(sabotage);
        let tap: SharedTap = Arc::new(Saboteur(plot.clone()));
        let engine = Engine::tapped(world.catalog().clone(), Registry::new().with(world.kind()), LIMITS, tap);
        let id = engine.submit::<W::Kind>("kit", world.order()).await.map_err(|e| format!("cannot begin: {e}"))?;
        let mut turned = 0;
        let job = loop {
            tokio::select! {
                job = engine.wait(id) => {
                    // One that is killed at its last record never comes to rest.
                    if tokio::time::timeout(SETTLE, engine.idle()).await.is_err() {
                        tracing::debug!(%id, "was killed after its end");
                    }
                    break job;
                }
                () = plot.cancels.notified() => {
                    // Refused where it is too late, which is as good.
                    if let Err(e) = engine.cancel(id).await {
                        tracing::debug!(error = &e as &dyn std::error::Error, "not cancelled");
                    }
                    plot.go_on.add_permits(1);
                }
                () = plot.fails.notified() => {
                    turned = world.calls().len() - asked;
                    plot.go_on.add_permits(1);
                }
                () = plot.killed.notified() => {
                    engine.stop().await;
                    let kinds = Registry::new().with(world.kind());
                    let next = Engine::tapped(world.catalog().clone(), kinds, LIMITS, Arc::new(NoTap));
                    next.recover().await.map_err(|e| format!("cannot recover: {e}"))?;
                    let job = next.wait(id).await;
                    next.stop().await;
                    break job;
                }
            }
        };
        engine.stop().await;
        let job = job.map_err(|e| format!("the job cannot be read: {e}"))?;
        let calls = world.calls().split_off(asked);
        let after = look(world).await?;
        at_rest(&after)?;
        let fail = |e: keyframe_catalog::Error| format!("the catalog: {e}");
        let steps = world.catalog().read().await.map_err(fail)?.steps(id).await.map_err(fail)?.len();
        Ok(Run { before, after, job, steps, records: plot.records(), calls, turned })
    }
}

async fn look<W: World>(world: &W) -> Result<Value, String> {
    let fail = |e: keyframe_catalog::Error| format!("the catalog cannot be read: {e}");
    let catalog = world.catalog().read().await.map_err(fail)?.dump().await.map_err(fail)?;
    Ok(json!({ "catalog": catalog, "outside": world.look().await }))
}

/// Nothing is locked, nothing is in the middle of anything.
pub(crate) fn at_rest(world: &Value) -> Result<(), String> {
    let catalog = &world["catalog"];
    if let Some(lock) = catalog["locks"].as_array().and_then(|locks| locks.first()) {
        return Err(format!("a lock is left: {lock}"));
    }
    for things in ["vms", "snapshots", "templates"] {
        for thing in catalog[things].as_array().into_iter().flatten() {
            let state = &thing["state"]["state"];
            if ["busy", "creating", "deleting"].iter().any(|busy| state == busy) {
                return Err(format!("{} {} is left {state}", things.trim_end_matches('s'), thing["name"]));
            }
        }
    }
    Ok(())
}

fn violation(sabotage: Sabotage, loss: Option<&Loss>, what: String) -> Violation {
    let scenario = match loss {
        None => sabotage.to_string(),
        Some(loss) if sabotage == Sabotage::default() => loss.to_string(),
        Some(loss) => format!("{sabotage}, {loss}"),
    };
    Violation { scenario, what }
}

impl std::fmt::Display for Sabotage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut said = false;
        let mut say = |text: String, f: &mut std::fmt::Formatter<'_>| {
            let comma = if std::mem::replace(&mut said, true) { ", " } else { "" };
            write!(f, "{comma}{text}")
        };
        if self.twice {
            say("everything twice".to_owned(), f)?;
        }
        match self.fail {
            Some((step, When::BeforeEffect)) => say(format!("step {step} fails before its effect"), f)?,
            Some((step, When::AfterEffect)) => say(format!("step {step} fails after its effect"), f)?,
            None => {}
        }
        match self.kill {
            Some(Point::Record(n)) => say(format!("killed after record {n}"), f)?,
            Some(Point::Effect(n)) => say(format!("killed after the effect of step {n}"), f)?,
            Some(Point::Undone(n)) => say(format!("killed after undoing step {n}"), f)?,
            None => {}
        }
        if let Some(n) = self.cancel {
            say(format!("cancelled after record {n}"), f)?;
        }
        if said { Ok(()) } else { f.write_str("undisturbed") }
    }
}
