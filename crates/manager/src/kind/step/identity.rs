//! Telling guests that come from memory who they are, or what time it is. A guest that does not listen is no failure: it runs,
//! and a note says what it still believes.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_model::agent::{FixIdentity, Generation, GuestIdentity, Micros, VmId};
use serde_json::Value;

use super::{Output, Told};
use crate::agent::Agent;
use crate::job::{Context, Step};
use crate::{Error, ErrorKind, Result};

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

    /// The guests run, and may have been used: nothing takes that back.
    fn commits(&self) -> bool {
        true
    }
}

/// How long a guest's agent may take to set a clock.
const CLOCK: Micros = Micros(5_000_000);

/// Sets the clock of a guest that goes on from memory, where its agent can: it stands at the time of the memory.
pub(crate) struct SetClock {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
}

#[async_trait]
impl Step for SetClock {
    fn name(&self) -> String {
        format!("set the clock of {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        let identity = GuestIdentity { clock: true, ..GuestIdentity::default() };
        let wish = FixIdentity { generation: self.generation, identity, deadline: CLOCK };
        let complaints = match self.agent.fix_identity(self.vm, &wish).await {
            Ok(fixed) => fixed.complaints,
            Err(e) if e.kind == ErrorKind::Unreachable => return Err(e),
            // The machine is free, so by now it may be off, or another one.
            Err(e) => vec![e.message],
        };
        let note = |why: &String| format!("{}: its clock is still that of the snapshot: {why}", self.name);
        Output::Notes(complaints.iter().map(note).collect()).value()
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(60) + CLOCK.into()
    }

    /// The guest runs, and may have been used: nothing takes that back.
    fn commits(&self) -> bool {
        true
    }
}
