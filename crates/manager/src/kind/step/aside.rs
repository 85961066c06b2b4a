//! Giving a machine up for what comes instead, while its memory is still to be stored.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_model::Notice;
use keyframe_model::agent::{Bytes, GiveUp as Wish, InstantReport, SnapshotId, StartFrom, StartVm, Timestamp, VmId};
use serde_json::Value;
use tokio::time::sleep;

use super::Output;
use super::instant::{call_off, instant_deadline, once_free, watch};
use super::power::{is_off, start};
use crate::agent::Agent;
use crate::job::{Context, Probe, Step};
use crate::{Error, ErrorKind, Result};

/// How often it is tried again to store a memory that nobody waits for.
const MORE_TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_secs(2);

/// Gives up a machine that stands still, but for its memory; undone, it goes on from that, standing still.
pub(crate) struct GiveUp {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    /// The instant that is to have the memory.
    pub(crate) snapshot: SnapshotId,
    /// The machine's RAM.
    pub(crate) memory: Bytes,
    pub(crate) back: StartVm,
}

impl GiveUp {
    async fn give_up(&self) -> Result<Value> {
        let wish = Wish { generation: self.back.generation, snapshot: self.snapshot };
        match once_free(|| self.agent.give_up(self.vm, &wish)).await {
            Ok(status) => Output::Power(status.power).value(),
            Err(e) if e.kind == ErrorKind::Unreachable => Err(e),
            Err(e) => {
                let message =
                    format!("{}; applying it without keeping the guest's memory does not need that", e.message);
                Err(Error { message, ..e })
            }
        }
    }

    /// The machine goes on with its memory, or without if that is lost.
    async fn go_on(&self, cx: &Context) -> Result<()> {
        let lost = match store(&self.agent, self.snapshot).await {
            Ok(_) => {
                start(&self.agent, self.vm, &self.back).await?;
                return Ok(());
            }
            Err(e) if e.kind == ErrorKind::NotFound => e.message,
            Err(e) => return Err(e),
        };
        start(&self.agent, self.vm, &StartVm { from: StartFrom::Cold, ..self.back.clone() }).await?;
        let text =
            format!("the guest was started anew: what was to come instead of it could not be started, and {lost}");
        let mut tx = cx.catalog().write().await?;
        let mut vm = tx.vm(self.vm).await?;
        vm.notice = Some(Notice { at: Timestamp::now(), text });
        tx.update_vm(&mut vm).await?;
        Ok(tx.commit().await?)
    }
}

async fn store(agent: &Agent, snapshot: SnapshotId) -> Result<InstantReport> {
    once_free(|| agent.store_memory(snapshot)).await
}

#[async_trait]
impl Step for GiveUp {
    fn name(&self) -> String {
        format!("set {} aside", self.name)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        tokio::select! {
            done = self.give_up() => done,
            never = call_off(&self.agent, self.snapshot, cx) => match never {},
            never = watch(&self.agent, self.snapshot, Some(self.memory), cx) => match never {},
        }
    }

    async fn undo(&self, cx: &Context) -> Result<()> {
        if is_off(&self.agent, self.vm).await? { self.go_on(cx).await } else { Ok(()) }
    }

    fn deadline(&self) -> Duration {
        instant_deadline(Some(self.memory))
    }
}

/// Stores the memory of what was given up. By now something else runs instead, so a memory that cannot be stored is told of,
/// and nothing is taken back for it.
pub(crate) struct KeepMemory {
    pub(crate) agent: Agent,
    pub(crate) name: String,
    pub(crate) snapshot: SnapshotId,
    pub(crate) memory: Bytes,
}

impl KeepMemory {
    async fn keep(&self) -> Result<Value> {
        let mut tries = 0;
        loop {
            match store(&self.agent, self.snapshot).await {
                Ok(report) => return Output::Instant(report).value(),
                Err(e) if e.kind == ErrorKind::Unreachable => return Err(e),
                // It is still there, and somebody may make room.
                Err(e) if e.kind != ErrorKind::NotFound && tries < MORE_TRIES => {
                    tries += 1;
                    tracing::warn!(
                        error = &e as &dyn std::error::Error,
                        "the memory of what was given up is not stored"
                    );
                    sleep(BETWEEN_TRIES).await;
                }
                Err(e) => {
                    self.agent.drop_memory(self.snapshot).await?;
                    return Output::Lost(e.message).value();
                }
            }
        }
    }
}

#[async_trait]
impl Step for KeepMemory {
    fn name(&self) -> String {
        format!("keep the memory of {}", self.name)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        tokio::select! {
            done = self.keep() => done,
            never = watch(&self.agent, self.snapshot, Some(self.memory), cx) => match never {},
        }
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn probe(&self, _: &Context) -> Result<Probe> {
        let report = self.agent.probe_instant(self.snapshot, &[]).await?.report;
        Ok(match report.filter(|report| report.memory.is_some()) {
            Some(report) => Probe::Done(Output::Instant(report).value()?),
            None => Probe::Unknown,
        })
    }

    fn deadline(&self) -> Duration {
        instant_deadline(Some(self.memory))
    }

    fn commits(&self) -> bool {
        true
    }
}
