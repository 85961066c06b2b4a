//! The engine: takes orders, drives jobs in tasks of their own, and takes up what a manager before it left unfinished.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use keyframe_catalog::PageOf;
use keyframe_catalog::{Catalog, Job, SnapshotFilter, Transaction};
use keyframe_model::agent::{Generation, JobId, Timestamp, VmId};
use keyframe_model::{
    JobEvent, JobKind, JobState, Progress, Refusal, RefusalKind, SnapshotEvent, SnapshotState, TemplateEvent,
    TemplateState, VmEvent, VmState,
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::drive::Course;
use super::record::{Halt, failure};
use super::tap::{self, SharedTap};
use super::{Kind, Registry};
use crate::{Error, ErrorKind, Result};

/// What is wrong when the catalog has only its reserve left, with the way out.
pub(crate) const FULL: &str = "the disk that the catalog is on is full, so nothing new can be made: delete snapshots with \
                               memory or machines, or make room there";

/// How patient and how busy an engine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most jobs at work at once; the others wait.
    pub jobs: usize,
    /// How long a step that cannot be done or undone is tried again.
    pub patience: Duration,
    /// Between the first try and the second; doubled each time.
    pub first_wait: Duration,
    /// Between two tries at most.
    pub longest_wait: Duration,
    /// How often progress is written down at most.
    pub report: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // Most of their time they wait: for a guest that shuts down, for memory that comes in.
            jobs: 128,
            patience: Duration::from_secs(120),
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
            report: Duration::from_millis(500),
        }
    }
}

/// The engine. Clones are the same one.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) catalog: Catalog,
    pub(super) registry: Registry,
    pub(super) limits: Limits,
    pub(super) tap: SharedTap,
    room: Semaphore,
    tasks: Mutex<Tasks>,
    fenced: CancellationToken,
}

#[derive(Default)]
struct Tasks {
    set: JoinSet<()>,
    cancels: HashMap<JobId, CancellationToken>,
    stopped: bool,
}

impl Engine {
    /// An engine at rest. Whoever makes it is the catalog's manager.
    pub fn new(catalog: Catalog, registry: Registry, limits: Limits) -> Engine {
        Engine::tapped(catalog, registry, limits, tap::usual())
    }

    pub(super) fn tapped(catalog: Catalog, registry: Registry, limits: Limits, tap: SharedTap) -> Engine {
        let room = Semaphore::new(limits.jobs.max(1));
        let (tasks, fenced) = (Mutex::default(), CancellationToken::new());
        Engine { inner: Arc::new(Inner { catalog, registry, limits, tap, room, tasks, fenced }) }
    }

    /// Takes up all jobs that have not ended, and says how many.
    pub async fn recover(&self) -> Result<usize> {
        let jobs = self.inner.catalog.read().await?.unfinished_jobs().await?;
        for job in &jobs {
            tracing::info!(job = %job.id, title = job.title, "goes on");
            self.wake(job.id);
        }
        Ok(jobs.len())
    }

    /// Orders a job; it is at work when this returns.
    pub async fn submit<K: Kind>(&self, caller: &str, order: K::Order) -> Result<JobId> {
        let mut tx = self.inner.catalog.write().await?;
        let id = self.enqueue::<K>(&mut tx, caller, order).await?;
        tx.commit().await?;
        self.wake(id);
        Ok(id)
    }

    /// Orders a job as part of a transaction. After an error the transaction must be dropped; after its commit the job must be
    /// woken.
    pub async fn enqueue<K: Kind>(&self, tx: &mut Transaction, caller: &str, order: K::Order) -> Result<JobId> {
        self.room_for(K::KIND)?;
        let id = JobId::new();
        let begun = self.inner.registry.typed::<K>()?.begin(tx, id, order).await?;
        let plan = serde_json::to_value(&begun.plan).map_err(|e| Error {
            kind: ErrorKind::Internal,
            message: "the plan of the job cannot be stored".into(),
            source: Some(Box::new(e)),
        })?;
        tx.insert_job(&Job {
            id,
            kind: K::KIND,
            state: JobState::Queued,
            generation: Generation(1),
            title: begun.title,
            caller: caller.to_owned(),
            vms: begun.vms,
            source: begun.source,
            snapshot: begun.snapshot,
            template: begun.template,
            plan,
            progress: Progress::default(),
            message: String::new(),
            cancel: false,
            committed: false,
            error: None,
            left: Vec::new(),
            result: None,
            created: Timestamp::now(),
            started: None,
            ended: None,
        })
        .await?;
        Ok(id)
    }

    /// Refuses what needs room while the catalog has none to spare.
    pub(crate) fn room_for(&self, kind: JobKind) -> Result<()> {
        if kind.takes_room() && self.inner.catalog.is_short_of_room() {
            return Err(Error::new(ErrorKind::NoSpace, FULL));
        }
        Ok(())
    }

    /// Sets a task to work on the job, unless one is.
    pub fn wake(&self, id: JobId) {
        let mut tasks = self.inner.tasks.lock();
        while tasks.set.try_join_next().is_some() {}
        if tasks.stopped || tasks.cancels.contains_key(&id) {
            return;
        }
        let cancel = CancellationToken::new();
        tasks.cancels.insert(id, cancel.clone());
        let inner = self.inner.clone();
        tasks.set.spawn(async move {
            inner.supervise(id, cancel).await;
            inner.tasks.lock().cancels.remove(&id);
        });
    }

    /// Wishes a job undone. It is refused when the job has ended, is being undone, or has begun what cannot be undone.
    pub async fn cancel(&self, id: JobId) -> Result<()> {
        let mut tx = self.inner.catalog.write().await?;
        let mut job = tx.job(id).await?;
        if job.state.ended() {
            let ended = serde_json::to_value(job.state).ok().and_then(|word| word.as_str().map(str::to_owned));
            let message = format!("job {id} ({}) has ended already: {}", job.title, ended.unwrap_or_default());
            return Err(Refusal::new(RefusalKind::State, message).into());
        }
        job.state.after(JobEvent::Cancel)?;
        if job.committed {
            let message = format!("job {id} ({}) has begun what cannot be undone; wait for its end", job.title);
            return Err(Refusal::new(RefusalKind::State, message).into());
        }
        job.cancel = true;
        tx.update_job(&mut job).await?;
        tx.commit().await?;
        if let Some(cancel) = self.inner.tasks.lock().cancels.get(&id) {
            cancel.cancel();
        }
        Ok(())
    }

    /// Waits for a job's end.
    pub async fn wait(&self, id: JobId) -> Result<Job> {
        let mut changes = self.inner.catalog.changes();
        loop {
            changes.borrow_and_update();
            let job = self.inner.catalog.read().await?.job(id).await?;
            if job.state.ended() {
                return Ok(job);
            }
            let gone = |e| Error {
                kind: ErrorKind::Internal,
                message: format!("nobody waits for job {id} any more: the catalog is closed"),
                source: Some(Box::new(e)),
            };
            changes.changed().await.map_err(gone)?;
        }
    }

    /// Drops all work where it stands; the next engine on this catalog takes it up.
    pub async fn stop(&self) {
        let mut set = {
            let mut tasks = self.inner.tasks.lock();
            tasks.stopped = true;
            tasks.cancels.clear();
            std::mem::take(&mut tasks.set)
        };
        set.shutdown().await;
    }

    /// Returns when no task is at work any more: a job's task goes on for a moment after the job's end is known.
    #[cfg(any(test, feature = "kit"))]
    pub(super) async fn idle(&self) {
        while !self.inner.tasks.lock().cancels.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns when another manager has taken over: this process must end.
    pub async fn until_fenced(&self) {
        self.inner.fenced.cancelled().await;
    }
}

impl Inner {
    /// Drives a job to its end, through whatever happens to the catalog or to the kind's code.
    async fn supervise(self: &Arc<Inner>, id: JobId, cancel: CancellationToken) {
        // Who is to be undone needs no room: a job that has not begun ends at once.
        let _room = tokio::select! {
            room = self.room.acquire() => match room {
                Ok(room) => Some(room),
                Err(_) => return,
            },
            () = cancel.cancelled() => None,
        };
        let mut wait = self.limits.first_wait;
        loop {
            let (inner, token) = (self.clone(), cancel.clone());
            // In a set, so that it ends with this task; in a task, so that a panic ends there.
            let mut task = JoinSet::new();
            task.spawn(async move { Course::of(&inner, id, &token).await?.go().await });
            let halt = match task.join_next().await {
                None | Some(Ok(Ok(()))) => return,
                Some(Ok(Err(halt))) => halt,
                Some(Err(e)) if e.is_panic() => {
                    Halt::Hopeless(Error::new(ErrorKind::Internal, "a step of the job has a bug: it panicked"))
                }
                Some(Err(_)) => return,
            };
            let halt = match halt {
                Halt::Hopeless(e) => {
                    tracing::error!(job = %id, error = &e as &dyn std::error::Error, "is given up");
                    match self.give_up(id, &e).await {
                        Ok(()) => return,
                        Err(e) => Halt::Again(e),
                    }
                }
                other => other,
            };
            match halt {
                Halt::Fenced(e) => {
                    tracing::error!(job = %id, error = &e as &dyn std::error::Error, "another manager takes over");
                    self.fenced.cancel();
                    return;
                }
                Halt::Again(e) | Halt::Hopeless(e) => {
                    tracing::warn!(job = %id, error = &e as &dyn std::error::Error, "waits for the catalog");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(self.limits.longest_wait);
                }
            }
        }
    }

    /// Ends a job that its kind cannot end: whatever it was at work on is in error, with the reason.
    async fn give_up(&self, id: JobId, cause: &Error) -> Result<()> {
        let mut tx = self.catalog.write().await?;
        let mut job = tx.job(id).await?;
        if job.state.ended() {
            return Ok(());
        }
        let reason = format!("{} failed: {cause}", job.title);
        for &vm in &job.vms {
            break_vm(&mut tx, vm, id, &reason).await?;
        }
        if let Some(source) = job.source {
            release_vm(&mut tx, source, id).await?;
        }
        if let Some(template) = job.template {
            match tx.template(template).await {
                Ok(mut template) => {
                    if let TemplateState::Creating { job } | TemplateState::Deleting { job } = template.state
                        && job == id
                    {
                        template.state = template.after(&TemplateEvent::Broke(reason))?;
                        tx.update_template(&mut template).await?;
                    }
                }
                Err(e) if e.kind == keyframe_catalog::ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        for step in tx.steps(id).await? {
            if !matches!(step.state, keyframe_catalog::StepState::Undone) {
                job.left.push(format!("{} ({})", step.name, step.error.as_deref().unwrap_or("not undone")));
            }
        }
        tx.unlock(id).await?;
        (job.state, job.error, job.ended) = (JobState::Failed, Some(failure(cause)), Some(Timestamp::now()));
        tx.update_job(&mut job).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Whatever became of its copies, nothing happened to the machine.
async fn release_vm(tx: &mut Transaction, vm: VmId, id: JobId) -> Result<()> {
    let mut vm = match tx.vm(vm).await {
        Ok(vm) => vm,
        Err(e) if e.kind == keyframe_catalog::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    if matches!(vm.state, VmState::Busy { job, .. } if job == id) {
        vm.state = vm.after(&VmEvent::Undone)?;
        tx.update_vm(&mut vm).await?;
    }
    Ok(())
}

async fn break_vm(tx: &mut Transaction, vm: VmId, id: JobId, reason: &str) -> Result<()> {
    let mut vm = match tx.vm(vm).await {
        Ok(vm) => vm,
        Err(e) if e.kind == keyframe_catalog::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    if let VmState::Busy { job, .. } = vm.state
        && job == id
    {
        vm.state = vm.after(&VmEvent::Broke(reason.to_owned()))?;
        tx.update_vm(&mut vm).await?;
    }
    let filter = SnapshotFilter { vm: Some(vm.id), ..SnapshotFilter::default() };
    for mut snapshot in tx.snapshots(&filter, &PageOf::all()).await?.items {
        if let SnapshotState::Creating { job } | SnapshotState::Deleting { job } = snapshot.state
            && job == id
        {
            snapshot.state = snapshot.after(&SnapshotEvent::Broke(reason.to_owned()))?;
            tx.update_snapshot(&mut snapshot).await?;
        }
    }
    Ok(())
}
