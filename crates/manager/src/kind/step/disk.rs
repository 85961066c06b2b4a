//! Changes of the hardware of a machine that has a process.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_model::agent::{
    Bytes, ConfigureDisk, DiskSlot, Generation, NicId, Power, ResizeVolume, SetLink, VmId, VolumeRef,
};
use serde_json::Value;

use crate::agent::Agent;
use crate::job::{Context, Step};
use crate::{ErrorKind, Result};

/// How long a guest may take to let go of a disk.
const UNPLUG: Duration = Duration::from_secs(90);

/// Adds a disk; undone, it is out again.
pub(crate) struct AddDisk {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
    pub(crate) disk: DiskSlot,
}

#[async_trait]
impl Step for AddDisk {
    fn name(&self) -> String {
        format!("plug in disk {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        plug_in(&self.agent, self.vm, self.generation, &self.disk).await
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        pull_out(&self.agent, self.vm, self.generation, &self.disk).await
    }

    fn deadline(&self) -> Duration {
        UNPLUG
    }
}

/// Takes a disk out; undone, it is in again.
pub(crate) struct RemoveDisk {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
    pub(crate) disk: DiskSlot,
}

#[async_trait]
impl Step for RemoveDisk {
    fn name(&self) -> String {
        format!("unplug disk {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        pull_out(&self.agent, self.vm, self.generation, &self.disk).await?;
        Ok(Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        plug_in(&self.agent, self.vm, self.generation, &self.disk).await.map(drop)
    }

    fn deadline(&self) -> Duration {
        UNPLUG
    }
}

/// What a process could not be told any more needs not be said: the next one is started with what the catalog says.
async fn unless_off(agent: &Agent, vm: VmId, told: Result<()>) -> Result<()> {
    let Err(error) = told else { return Ok(()) };
    match agent.vm(vm).await {
        Ok(status) if status.power == Power::Off => Ok(()),
        Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => Err(error),
    }
}

async fn plug_in(agent: &Agent, vm: VmId, generation: Generation, disk: &DiskSlot) -> Result<Value> {
    let told = agent.add_disk(vm, &ConfigureDisk { generation, disk: disk.clone() }).await;
    unless_off(agent, vm, told).await?;
    Ok(Value::Null)
}

async fn pull_out(agent: &Agent, vm: VmId, generation: Generation, disk: &DiskSlot) -> Result<()> {
    match agent.remove_disk(vm, disk.id, generation).await {
        // It is out already.
        Err(e) if e.kind == ErrorKind::NotFound => Ok(()),
        told => unless_off(agent, vm, told).await,
    }
}

/// Sets the size of a volume, and tells the guest if there is one; undone, it has its old size.
pub(crate) struct Resize {
    pub(crate) agent: Agent,
    pub(crate) name: String,
    pub(crate) volume: VolumeRef,
    pub(crate) from: Bytes,
    pub(crate) to: Bytes,
    /// The guest to tell.
    pub(crate) guest: Option<(VmId, Generation, DiskSlot)>,
}

impl Resize {
    async fn set(&self, size: Bytes) -> Result<()> {
        let shrink = self.from.max(self.to) != size;
        self.agent.resize_volume(&self.volume, &ResizeVolume { size, shrink }).await?;
        if let Some((vm, generation, disk)) = &self.guest {
            let told = self.agent.disk_resized(*vm, disk.id, *generation).await;
            unless_off(&self.agent, *vm, told).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Step for Resize {
    fn name(&self) -> String {
        format!("resize disk {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        self.set(self.to).await?;
        Ok(Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        match self.set(self.from).await {
            // What a guest has does not shrink. That its volume goes on beyond what anybody knows does no harm.
            Err(e) if self.guest.is_some() && e.kind == ErrorKind::Busy => Ok(()),
            other => other,
        }
    }

    /// What was beyond the new end does not come back.
    fn commits(&self) -> bool {
        self.to < self.from
    }
}

/// Plugs cables in and out; undone, they are as before.
pub(crate) struct SetLinks {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) generation: Generation,
    /// Those that change, and whether they are in afterwards.
    pub(crate) links: Vec<(NicId, bool)>,
}

#[async_trait]
impl Step for SetLinks {
    fn name(&self) -> String {
        format!("plug the cables of {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        for &(nic, up) in &self.links {
            self.set(nic, up).await?;
        }
        Ok(Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        for &(nic, up) in &self.links {
            self.set(nic, !up).await?;
        }
        Ok(())
    }
}

impl SetLinks {
    async fn set(&self, nic: NicId, up: bool) -> Result<()> {
        let told = self.agent.set_link(self.vm, &SetLink { generation: self.generation, nic, up }).await;
        unless_off(&self.agent, self.vm, told).await
    }
}
