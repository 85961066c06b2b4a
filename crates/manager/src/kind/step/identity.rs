//! Telling copied guests who they are. A guest that does not listen is no failure: it runs, and a note says what it still
//! believes.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_model::agent::{FixIdentity, Micros, VmId};
use serde_json::Value;

use super::Output;
use crate::agent::Agent;
use crate::job::{Context, Step};
use crate::{ErrorKind, Result};

/// How often a host is asked how much memory is still to be loaded.
const LOOK: Duration = Duration::from_millis(100);

/// A guest that was copied with its memory.
pub(crate) struct NewGuest {
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) wish: FixIdentity,
}

/// Tells all guests of a call, at the same time.
pub(crate) struct FixIdentities {
    pub(crate) agent: Agent,
    pub(crate) guests: Vec<NewGuest>,
    /// How long each guest may take.
    pub(crate) deadline: Micros,
}

impl FixIdentities {
    async fn tell(agent: Agent, vm: VmId, name: String, wish: FixIdentity) -> Result<Vec<String>> {
        match agent.fix_identity(vm, &wish).await {
            Ok(fixed) => Ok(fixed.complaints.iter().map(|complaint| format!("{name}: {complaint}")).collect()),
            Err(e) if e.kind == ErrorKind::Unreachable => Err(e),
            Err(e) => Ok(vec![format!("{name}: the guest was not told who it is now: {}", e.message)]),
        }
    }
}

#[async_trait]
impl Step for FixIdentities {
    fn name(&self) -> String {
        "tell the guests who they are".to_owned()
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        let mut calls = tokio::task::JoinSet::new();
        for guest in &self.guests {
            calls.spawn(Self::tell(self.agent.clone(), guest.vm, guest.name.clone(), guest.wish.clone()));
        }
        let mut notes = Vec::new();
        while let Some(told) = calls.join_next().await {
            match told {
                Ok(told) => notes.extend(told?),
                Err(broken) => notes.push(format!("a guest was not told who it is now: {broken}")),
            }
        }
        notes.sort();
        Output::Notes(notes).value()
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(120) + self.deadline.into()
    }
}

/// Waits until machines need nothing any more of the image that they were resumed from.
pub(crate) struct WaitLoaded {
    pub(crate) agent: Agent,
    pub(crate) vms: Vec<VmId>,
}

impl WaitLoaded {
    async fn pending(&self, vm: VmId) -> Result<u64> {
        match self.agent.vm(vm).await {
            Ok(status) => Ok(status.memory_pending.0),
            Err(e) if e.kind == ErrorKind::NotFound => Ok(0),
            Err(e) => Err(e),
        }
    }
}

#[async_trait]
impl Step for WaitLoaded {
    fn name(&self) -> String {
        "wait until all memory is loaded".to_owned()
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut most = 0;
        loop {
            let mut left = 0;
            for &vm in &self.vms {
                left += self.pending(vm).await?;
            }
            if left == 0 {
                return Ok(Value::Null);
            }
            if cx.cancelled() {
                return Err(crate::Error::cancelled());
            }
            most = left.max(most);
            cx.progress(most - left, most);
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(3600)
    }
}
