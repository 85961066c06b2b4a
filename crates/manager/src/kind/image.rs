//! What is done to a snapshot after it was taken: its memory is compressed, or all of it is verified. Neither changes what it
//! holds, so it can be applied and cloned meanwhile; only deleting it has to wait.

use std::convert::Infallible;
use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::{Resource, Transaction};
use keyframe_model::agent::{
    Bytes, Generation, JobId, MemoryInfo, MemoryState, SnapshotId, Timestamp, VolumeRef, WorkProgress,
};
use keyframe_model::memory::Loader;
use keyframe_model::{Finding, JobKind, Snapshot, Verification};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::hold::{check_generation, hold_snapshot};
use super::step::{Output, notes, outputs};
use crate::agent::Agent;
use crate::job::{Begun, Context, Ending, Kind, Outcome, Step};
use crate::{Error, ErrorKind, Result};

/// An image is read faster than this many bytes a second, or something is wrong.
const SLOWEST: u64 = 4 * Bytes::MIB;

/// How long until a call is repeated that the host refuses because it is still at an earlier copy of it, and how often the
/// host is asked how far it is.
const AGAIN: Duration = Duration::from_millis(500);

/// Which snapshot.
pub(crate) struct ImageOrder {
    pub(crate) snapshot: SnapshotId,
    pub(crate) expected: Option<Generation>,
}

/// What was decided.
#[derive(Serialize, Deserialize)]
pub(crate) struct ImagePlan {
    snapshot: SnapshotId,
    name: String,
    volumes: Vec<VolumeRef>,
    memory: Option<MemoryInfo>,
}

/// The memory of a snapshot, as it was last known.
pub(crate) fn memory_of(snapshot: &Snapshot) -> Option<&MemoryInfo> {
    snapshot.report.as_ref()?.memory.as_ref()
}

async fn begin(tx: &mut Transaction, job: JobId, snapshot: &Snapshot, verb: &str) -> Result<Begun<ImagePlan>> {
    hold_snapshot(tx, job, snapshot).await?;
    let vm = tx.vm(snapshot.vm).await?;
    let plan = ImagePlan {
        snapshot: snapshot.id,
        name: snapshot.name.to_string(),
        volumes: snapshot.hardware.volumes(),
        memory: memory_of(snapshot).cloned(),
    };
    let title = format!("{verb} {} of {}", snapshot.name, vm.name);
    Ok(Begun { plan, title, vms: vec![vm.id], source: None, snapshot: Some(snapshot.id), template: None })
}

/// What the end of a job that reads all of a snapshot says of it: nothing unless all was read, or something found damaged.
fn finding(outcome: &Outcome) -> Option<Finding> {
    match outcome {
        Outcome::Done => Some(Finding::Whole),
        Outcome::Undone { cause } | Outcome::Broken { cause, .. } => match cause.kind {
            ErrorKind::Corrupt => Some(Finding::Damaged { reason: cause.message.clone() }),
            // Read to its end, and not to be loaded by this host.
            ErrorKind::Unsupported => Some(Finding::Whole),
            _ => None,
        },
    }
}

fn found(finding: Finding) -> Verification {
    Verification { at: Timestamp::now(), finding }
}

fn deadline(memory: Option<&MemoryInfo>) -> Duration {
    Duration::from_secs(120 + memory.map_or(0, |memory| memory.memory.0 / SLOWEST))
}

/// Compresses the memory of a snapshot.
pub(crate) struct SnapshotCompress {
    pub(crate) agent: Agent,
}

#[async_trait]
impl Kind for SnapshotCompress {
    type Order = ImageOrder;
    type Plan = ImagePlan;
    const KIND: JobKind = JobKind::SnapshotCompress;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: ImageOrder) -> Result<Begun<ImagePlan>> {
        let snapshot = tx.snapshot(order.snapshot).await?;
        check_generation(snapshot.name.as_str(), snapshot.generation, order.expected)?;
        snapshot.usable()?;
        let name = &snapshot.name;
        match memory_of(&snapshot) {
            None => {
                let message = format!("snapshot {name} has no memory to be compressed");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            Some(memory) if memory.compressed => {
                let message = format!("the memory of snapshot {name} is compressed already");
                return Err(Error::new(ErrorKind::State, message));
            }
            Some(_) => {}
        }
        // Whoever reads the image now is not to share the disk with this.
        if let Some((other, _)) = tx.holders(Resource::Snapshot(snapshot.id)).await?.first() {
            let message = format!("snapshot {name} is being used by job {other}; wait for it");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        begin(tx, job, &snapshot, "compress the memory of").await
    }

    fn steps(&self, plan: &ImagePlan) -> Vec<Box<dyn Step>> {
        vec![Box::new(Compress {
            agent: self.agent.clone(),
            snapshot: plan.snapshot,
            deadline: deadline(plan.memory.as_ref()),
        })]
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, ImagePlan>) -> Result<Value> {
        let stored = outputs(job.outputs, 1)
            .into_iter()
            .find_map(|output| if let Output::Memory(memory) = output { Some(memory) } else { None });
        // Whatever became of the job, the image is what the host said last.
        let Some(stored) = stored else {
            if let Some(damaged @ Finding::Damaged { .. }) = finding(job.outcome) {
                let mut snapshot = tx.snapshot(job.plan.snapshot).await?;
                snapshot.verification = Some(found(damaged));
                tx.update_snapshot(&mut snapshot).await?;
            }
            return Ok(Value::Null);
        };
        let mut snapshot = tx.snapshot(job.plan.snapshot).await?;
        // Nobody has read the new image yet.
        snapshot.verification = None;
        let before = memory_of(&snapshot).map_or(stored.stored, |memory| memory.stored);
        let note = format!("its memory takes {} MiB now, {} before", mib(stored.stored), mib(before));
        if let Some(report) = &mut snapshot.report {
            report.memory = Some(stored);
        }
        tx.update_snapshot(&mut snapshot).await?;
        Ok(json!({ "notes": [note] }))
    }
}

fn mib(bytes: Bytes) -> u64 {
    bytes.0.div_ceil(Bytes::MIB)
}

/// Stores an image smaller; there is nothing to take back, because it holds the same.
struct Compress {
    agent: Agent,
    snapshot: SnapshotId,
    deadline: Duration,
}

#[async_trait]
impl Step for Compress {
    fn name(&self) -> String {
        "compress the memory".to_owned()
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        tokio::select! {
            stored = self.compress(cx) => Output::Memory(stored?).value(),
            never = self.call_off(cx) => match never {},
            never = watch(&self.agent, self.snapshot, cx) => match never {},
        }
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }
}

impl Compress {
    async fn compress(&self, cx: &Context) -> Result<MemoryInfo> {
        loop {
            match self.agent.compress_memory(self.snapshot).await {
                // The host is still at the call of a manager that is no more.
                Err(e) if e.kind == ErrorKind::Busy && !cx.cancelled() => sleep(AGAIN).await,
                done => return done,
            }
        }
    }

    /// Has the call ended once the job is called off, however late the host gets to it.
    async fn call_off(&self, cx: &Context) -> Infallible {
        cx.until_cancelled().await;
        loop {
            if let Err(e) = self.agent.cancel_instant(self.snapshot).await {
                tracing::debug!(error = &e as &dyn std::error::Error, "a compression is not called off");
            }
            sleep(AGAIN).await;
        }
    }
}

/// Reports how much of an image is read, forever.
async fn watch(agent: &Agent, snapshot: SnapshotId, cx: &Context) -> Infallible {
    loop {
        sleep(AGAIN).await;
        if let Ok(WorkProgress { done, total }) = agent.memory_progress(snapshot).await
            && total > 0
        {
            cx.progress(done, total);
        }
    }
}

/// Verifies that all of a snapshot is there, and every page of its memory.
pub(crate) struct SnapshotVerify {
    pub(crate) agent: Agent,
}

#[async_trait]
impl Kind for SnapshotVerify {
    type Order = ImageOrder;
    type Plan = ImagePlan;
    const KIND: JobKind = JobKind::SnapshotVerify;

    async fn begin(&self, tx: &mut Transaction, job: JobId, order: ImageOrder) -> Result<Begun<ImagePlan>> {
        let snapshot = tx.snapshot(order.snapshot).await?;
        check_generation(snapshot.name.as_str(), snapshot.generation, order.expected)?;
        begin(tx, job, &snapshot, "verify").await
    }

    fn steps(&self, plan: &ImagePlan) -> Vec<Box<dyn Step>> {
        vec![Box::new(Verify {
            agent: self.agent.clone(),
            snapshot: plan.snapshot,
            name: plan.name.clone(),
            volumes: plan.volumes.clone(),
            memory: plan.memory.clone(),
        })]
    }

    async fn finish(&self, tx: &mut Transaction, job: &Ending<'_, ImagePlan>) -> Result<Value> {
        if let Some(finding) = finding(job.outcome) {
            let mut snapshot = tx.snapshot(job.plan.snapshot).await?;
            snapshot.verification = Some(found(finding));
            tx.update_snapshot(&mut snapshot).await?;
        }
        match job.outcome {
            Outcome::Done => Ok(json!({ "notes": notes(&outputs(job.outputs, 1)) })),
            Outcome::Undone { .. } | Outcome::Broken { .. } => Ok(Value::Null),
        }
    }
}

struct Verify {
    agent: Agent,
    snapshot: SnapshotId,
    name: String,
    volumes: Vec<VolumeRef>,
    memory: Option<MemoryInfo>,
}

#[async_trait]
impl Step for Verify {
    fn name(&self) -> String {
        format!("verify {}", self.name)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        // The host ends its reading when nobody waits for it any more.
        tokio::select! {
            verified = self.verify() => verified,
            () = cx.until_cancelled() => Err(Error::cancelled()),
            never = watch(&self.agent, self.snapshot, cx) => match never {},
        }
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Duration {
        deadline(self.memory.as_ref())
    }
}

impl Verify {
    async fn verify(&self) -> Result<Value> {
        let found = self.agent.probe_instant(self.snapshot, &self.volumes).await?;
        let lost = self.volumes.iter().filter(|volume| !found.volumes.contains(volume)).count();
        if lost > 0 {
            let (all, name) = (self.volumes.len(), &self.name);
            let message = format!("snapshot {name} is not whole: {lost} of its {all} disks are lost; delete it");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let mut notes = vec![format!(
            "its {} disks are there; their blocks are verified with all others by `keyframe pool scrub`",
            self.volumes.len()
        )];
        if let Some(memory) = &self.memory {
            let wrong = match self.agent.verify_memory(self.snapshot).await? {
                MemoryState::Ready(info) => {
                    let why = Loader::from(&self.agent.host().await?).objection(&info);
                    why.map(|why| (ErrorKind::Unsupported, format!("is whole, but not loadable here: {why}")))
                }
                MemoryState::Absent => Some((ErrorKind::Corrupt, "is lost".to_owned())),
                MemoryState::Writing { .. } => Some((ErrorKind::Corrupt, "is not whole".to_owned())),
                MemoryState::Damaged { reason } => Some((ErrorKind::Corrupt, format!("is damaged: {reason}"))),
            };
            if let Some((kind, why)) = wrong {
                let message =
                    format!("the memory image of snapshot {} {why}; its disks can be used without memory", self.name);
                return Err(Error::new(kind, message));
            }
            notes.push(format!("all pages of its {} MiB of memory are sound", mib(memory.memory)));
        }
        Output::Notes(notes).value()
    }
}
