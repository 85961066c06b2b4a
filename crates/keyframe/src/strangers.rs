//! Machines that run on this host and that its manager does not know, because the catalog was lost or replaced. Nobody else can
//! name or stop them, so they are asked for at the agent itself.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use keyframe_agent::paths::Paths;
use keyframe_manager::AgentAddress;
use keyframe_manager::agent::Agent;
use keyframe_model::agent::{Micros, Power, StopHow, StopVm, VmId, VmStatus};

use crate::remote::client::Client;

/// How long the agent is waited for if it does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a guest may take to shut down.
const SHUTDOWN: Micros = Micros(60_000_000);

/// The agent of a data directory.
pub(crate) struct Host<'a> {
    client: &'a Client,
    agent: Agent,
}

/// A machine that no catalog has.
pub(crate) struct Stranger(VmStatus);

impl std::fmt::Display for Stranger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.0.machine.as_ref().map_or("a machine", |machine| &machine.name);
        write!(f, "{name} ({})", self.0.vm)
    }
}

impl Host<'_> {
    pub(crate) fn of<'a>(paths: &Paths, client: &'a Client) -> Result<Host<'a>> {
        let agent = Agent::new(&AgentAddress::Unix(paths.agent_socket()), PATIENCE)?;
        Ok(Host { client, agent })
    }

    /// Those that are on and not among `known`.
    pub(crate) fn strangers(&self, known: &BTreeSet<VmId>) -> Result<Vec<Stranger>> {
        let all = self.client.block_on(self.agent.vms())?;
        Ok(all.into_iter().filter(|vm| vm.power != Power::Off && !known.contains(&vm.vm)).map(Stranger).collect())
    }

    /// Has its guest shut down; one that does not, or stands still and hears nothing, is ended.
    pub(crate) fn stop(&self, stranger: &Stranger) -> Result<()> {
        let Stranger(VmStatus { vm, generation, power, .. }) = stranger;
        let how = match power {
            Power::Running => StopHow::Graceful { deadline: SHUTDOWN, then_hard: true },
            Power::Off | Power::Paused { .. } => StopHow::Hard,
        };
        let stopped = self.client.block_on(self.agent.stop(*vm, &StopVm { generation: *generation, how }));
        stopped.map(drop).with_context(|| format!("stop {stranger}"))
    }
}
