//! Taking an instant of a machine.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::{Leftover, StepState};
use keyframe_model::agent::{Bytes, MemoryState, SnapshotId, TakeInstant};
use serde_json::Value;
use tokio::time::{interval, sleep};

use super::Output;
use crate::agent::Agent;
use crate::job::{Context, Probe, Step};
use crate::{ErrorKind, Result};

/// How often the host is asked how far a memory image is.
const LOOK: Duration = Duration::from_millis(500);
/// How long until a call is repeated that the host is to be free for.
const AGAIN: Duration = Duration::from_millis(100);
/// A memory image is written faster than this many bytes a second, or something is wrong.
const SLOWEST: u64 = 4 * Bytes::MIB;

/// How long an instant may take in all.
pub(crate) fn instant_deadline(memory: Option<Bytes>) -> Duration {
    let memory = memory.map_or(0, |memory| memory.0 / SLOWEST);
    Duration::from_secs(120 + memory)
}

/// Takes an instant; undone, nothing of it is left.
pub(crate) struct Instant {
    pub(crate) agent: Agent,
    /// For people.
    pub(crate) name: String,
    pub(crate) snapshot: SnapshotId,
    pub(crate) wish: TakeInstant,
    /// The machine's RAM, if it is wanted.
    pub(crate) memory: Option<Bytes>,
    /// It stays if a later step could not be undone: then it is all there is of the state before.
    pub(crate) precious: bool,
}

/// Repeats a call while the host refuses it because it is still at an earlier copy of it.
pub(super) async fn once_free<T, F>(call: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    loop {
        match call().await {
            Err(e) if e.kind == ErrorKind::Busy => sleep(AGAIN).await,
            other => return other,
        }
    }
}

/// Has a call about an instant ended rather than leave it alone: what the host has received and not begun would be done after
/// its undoing.
pub(super) async fn call_off(agent: &Agent, snapshot: SnapshotId, cx: &Context) -> std::convert::Infallible {
    cx.until_cancelled().await;
    loop {
        if let Err(e) = agent.cancel_instant(snapshot).await {
            tracing::debug!(error = &e as &dyn std::error::Error, "an instant is not called off");
        }
        sleep(AGAIN).await;
    }
}

/// Reports how much of the memory is stored, forever.
pub(super) async fn watch(
    agent: &Agent,
    snapshot: SnapshotId,
    memory: Option<Bytes>,
    cx: &Context,
) -> std::convert::Infallible {
    let mut ticks = interval(LOOK);
    loop {
        ticks.tick().await;
        if let (Some(memory), Ok(probe)) = (memory, agent.probe_instant(snapshot, &[]).await)
            && let MemoryState::Writing { stored } = probe.memory
        {
            cx.progress(stored.0.min(memory.0), memory.0);
        }
    }
}

#[async_trait]
impl Step for Instant {
    fn name(&self) -> String {
        format!("take {}", self.name)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        tokio::select! {
            report = once_free(|| self.agent.take_instant(self.snapshot, &self.wish)) => Output::Instant(report?).value(),
            never = call_off(&self.agent, self.snapshot, cx) => match never {},
            never = watch(&self.agent, self.snapshot, self.memory, cx) => match never {},
        }
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        if self.precious {
            let steps = cx.catalog().read().await?.steps(cx.job()).await?;
            if steps.iter().any(|step| step.state == StepState::Stuck) {
                return Ok(());
            }
        }
        match self.agent.cancel_instant(self.snapshot).await {
            Ok(()) => {}
            Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::State) => {}
            Err(e) => return Err(e),
        }
        self.agent.delete_instant(self.snapshot, &self.wish.volumes).await
    }

    async fn probe(&self, _: &Context) -> Result<Probe> {
        let found = self.agent.probe_instant(self.snapshot, &self.wish.volumes).await?;
        Ok(match found.report {
            Some(report) => Probe::Done(Output::Instant(report).value()?),
            None => Probe::Unknown,
        })
    }

    fn deadline(&self) -> Duration {
        instant_deadline(self.memory)
    }

    fn leaves(&self) -> Vec<Leftover> {
        vec![Leftover::Instant { snapshot: self.snapshot, volumes: self.wish.volumes.clone() }]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::Error;

    #[tokio::test]
    async fn only_a_host_that_is_busy_is_asked_again() {
        let asked = AtomicUsize::new(0);
        let answer = async |kind: ErrorKind| match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Err(Error::new(kind, "not yet")),
            nth => Ok(nth),
        };
        assert_eq!(once_free(|| answer(ErrorKind::Busy)).await.unwrap(), 2);
        asked.store(0, Ordering::SeqCst);
        let refused = once_free(|| answer(ErrorKind::Unreachable)).await.unwrap_err();
        assert_eq!((refused.kind, asked.load(Ordering::SeqCst)), (ErrorKind::Unreachable, 1));
    }
}
