//! Deleting, which nothing undoes: whoever begins goes on to the end.

use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::Leftover;
use keyframe_model::agent::{Generation, SnapshotId, VmId, VolumeRef};
use serde_json::Value;

use super::power::forget;
use crate::Result;
use crate::agent::Agent;
use crate::job::{Context, Step};

/// The longest that a batch of deletions takes.
const BATCH: Duration = Duration::from_secs(600);

/// Deletes parts of instants, and their memories.
pub(crate) struct DeleteInstants {
    pub(crate) agent: Agent,
    pub(crate) instants: Vec<(SnapshotId, Vec<VolumeRef>)>,
    /// How many there are in all the job's steps, and before this one.
    pub(crate) total: u64,
    pub(crate) before: u64,
    /// They were for the job's own use.
    pub(crate) clears: bool,
}

#[async_trait]
impl Step for DeleteInstants {
    fn name(&self) -> String {
        match self.instants.len() {
            1 => "delete a snapshot".to_owned(),
            count => format!("delete {count} snapshots"),
        }
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut done = self.before;
        for (snapshot, volumes) in &self.instants {
            self.agent.delete_instant(*snapshot, volumes).await?;
            done += 1;
            cx.progress(done, self.total);
        }
        Ok(Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Duration {
        BATCH
    }

    fn commits(&self) -> bool {
        true
    }

    fn clears(&self) -> bool {
        self.clears
    }

    fn leaves(&self) -> Vec<Leftover> {
        let left = |(snapshot, volumes): &(SnapshotId, Vec<VolumeRef>)| Leftover::Instant {
            snapshot: *snapshot,
            volumes: volumes.clone(),
        };
        self.instants.iter().filter(|_| self.clears).map(left).collect()
    }
}

/// Deletes volumes with their snapshots.
pub(crate) struct DeleteVolumes {
    pub(crate) agent: Agent,
    pub(crate) volumes: Vec<VolumeRef>,
    /// The job's work is done without that.
    pub(crate) clears: bool,
}

#[async_trait]
impl Step for DeleteVolumes {
    fn name(&self) -> String {
        match self.volumes.len() {
            1 => "delete a disk".to_owned(),
            count => format!("delete {count} disks"),
        }
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        for volume in &self.volumes {
            self.agent.delete_volume(volume).await?;
        }
        Ok(Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn deadline(&self) -> Duration {
        BATCH
    }

    fn commits(&self) -> bool {
        true
    }

    fn clears(&self) -> bool {
        self.clears
    }

    fn leaves(&self) -> Vec<Leftover> {
        self.volumes.iter().filter(|_| self.clears).cloned().map(Leftover::Volume).collect()
    }
}

/// Lets the host forget a machine.
pub(crate) struct Forget {
    pub(crate) agent: Agent,
    pub(crate) vm: VmId,
    pub(crate) generation: Generation,
}

#[async_trait]
impl Step for Forget {
    fn name(&self) -> String {
        "let the host forget it".to_owned()
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        forget(&self.agent, self.vm, self.generation).await?;
        Ok(Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn commits(&self) -> bool {
        true
    }
}
