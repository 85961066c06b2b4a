//! Telling copied guests who they are. A guest that does not listen is no failure: it runs, and a note says what it still
//! believes.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_model::agent::{FixIdentity, Micros, VmId};
use serde_json::Value;

use super::{Output, Told};
use crate::agent::Agent;
use crate::job::{Context, Step};
use crate::{Error, ErrorKind, Result};

/// How often a host is asked how much memory is still to be loaded.
const LOOK: Duration = Duration::from_millis(100);

/// What becomes of the network of a guest that may still have the addresses of another.
pub(crate) const UNPLUGGED: &str = "its cables are out, because it may still go by its source's addresses; set them in the guest, \
                                    then plug them in with `keyframe nic plug`";

/// A guest that was copied with its memory.
#[derive(Clone)]
pub(crate) struct NewGuest {
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) wish: FixIdentity,
    /// It has cables that are to be in.
    pub(crate) cables: bool,
}

/// Tells all guests of a call, at the same time.
pub(crate) struct FixIdentities {
    pub(crate) agent: Agent,
    pub(crate) guests: Vec<NewGuest>,
    /// How long each guest may take.
    pub(crate) deadline: Micros,
}

impl FixIdentities {
    async fn tell(agent: Agent, guest: NewGuest) -> Result<Told> {
        let NewGuest { vm, name, wish, cables } = guest;
        let (mut complaints, plugged) = match agent.fix_identity(vm, &wish).await {
            Ok(fixed) => (fixed.complaints, fixed.plugged),
            Err(e) if e.kind == ErrorKind::Unreachable => return Err(e),
            Err(e) => (vec![format!("the guest was not told who it is now: {}", e.message)], false),
        };
        let unplugged = cables && !plugged;
        if unplugged {
            complaints.push(UNPLUGGED.to_owned());
        }
        let complaints = complaints.iter().map(|complaint| format!("{name}: {complaint}")).collect();
        Ok(Told { vm, complaints, unplugged })
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
            calls.spawn(Self::tell(self.agent.clone(), guest.clone()));
        }
        let mut all = Vec::new();
        while let Some(told) = calls.join_next().await {
            all.push(told.map_err(|broken| Error {
                kind: ErrorKind::Internal,
                message: "a guest was not told who it is now".to_owned(),
                source: Some(Box::new(broken)),
            })??);
        }
        all.sort_by(|one, other| one.complaints.cmp(&other.complaints));
        Output::Told(all).value()
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
