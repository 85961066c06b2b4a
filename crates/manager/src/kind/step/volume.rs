//! Making volumes, and taking them back to a snapshot.

use std::convert::Infallible;
use std::time::Duration;

use async_trait::async_trait;
use keyframe_catalog::Leftover;
use keyframe_model::agent::{
    CreateVolume, Generation, RevertVolume, SnapshotId, VmId, VolumeInfo, VolumeRef, VolumeSource, WorkProgress,
};
use serde_json::Value;
use tokio::time::sleep;

use super::Output;
use crate::agent::Agent;
use crate::job::{Context, Step};
use crate::{Error, ErrorKind, Result};

/// How long until a call is repeated that the host refuses because it is still at an earlier copy of it.
const AGAIN: Duration = Duration::from_millis(100);
/// How often the host is asked how far an image is read.
const LOOK: Duration = Duration::from_millis(500);
/// Parts of a volume in the step's progress.
const PARTS: u64 = 1000;

/// Makes the volumes of one machine or template.
pub(crate) struct Make {
    pub(crate) agent: Agent,
    /// For people.
    pub(crate) what: String,
    pub(crate) volumes: Vec<(VolumeRef, CreateVolume)>,
}

/// An image is read for as long as it takes, whoever waits for it: what an earlier copy of the call is at work on is waited for.
impl Make {
    async fn create(&self, cx: &Context, volume: &VolumeRef, wish: &CreateVolume) -> Result<VolumeInfo> {
        loop {
            match self.agent.create_volume(volume, wish).await {
                Err(e) if e.kind == ErrorKind::Busy && !cx.cancelled() => sleep(AGAIN).await,
                other => return other,
            }
        }
    }

    /// Has the call ended once the job is called off, however late the host gets to it.
    async fn call_off(&self, cx: &Context, volume: &VolumeRef) -> Infallible {
        cx.until_cancelled().await;
        loop {
            if let Err(e) = self.agent.cancel_volume(volume).await {
                tracing::debug!(error = &e as &dyn std::error::Error, "the making of a volume is not called off");
            }
            sleep(AGAIN).await;
        }
    }

    /// Reports how much of an image is read into the volume at that place, forever.
    async fn watch(&self, cx: &Context, at: usize) -> Infallible {
        let (volume, wish) = &self.volumes[at];
        if !matches!(wish.source, VolumeSource::Image { .. }) {
            std::future::pending::<()>().await;
        }
        let parts = |volumes: usize| u64::try_from(volumes).unwrap_or(u64::MAX).saturating_mul(PARTS);
        loop {
            sleep(LOOK).await;
            if let Ok(WorkProgress { done, total }) = self.agent.volume_progress(volume).await
                && let Some(read) = (u128::from(done) * u128::from(PARTS)).checked_div(u128::from(total))
            {
                cx.progress(parts(at) + u64::try_from(read).unwrap_or(PARTS).min(PARTS), parts(self.volumes.len()));
            }
        }
    }

    async fn delete(&self, volume: &VolumeRef) -> Result<()> {
        loop {
            match self.agent.delete_volume(volume).await {
                Err(e) if e.kind == ErrorKind::Busy => match self.agent.volume(volume).await {
                    // It is not there before it is made.
                    Err(e) if e.kind == ErrorKind::NotFound => sleep(AGAIN).await,
                    Ok(_) | Err(_) => return Err(e),
                },
                other => return other,
            }
        }
    }
}

#[async_trait]
impl Step for Make {
    fn name(&self) -> String {
        format!("make the disks of {}", self.what)
    }

    async fn run(&self, cx: &Context) -> Result<Value> {
        let mut sizes = Vec::with_capacity(self.volumes.len());
        for (at, (volume, wish)) in self.volumes.iter().enumerate() {
            if cx.cancelled() {
                return Err(Error::cancelled());
            }
            let made = tokio::select! {
                made = self.create(cx, volume, wish) => made?,
                never = self.call_off(cx, volume) => match never {},
                never = self.watch(cx, at) => match never {},
            };
            sizes.push(made.size.0);
        }
        Output::Sizes(sizes).value()
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        for (volume, _) in self.volumes.iter().rev() {
            self.delete(volume).await?;
        }
        Ok(())
    }

    fn deadline(&self) -> Duration {
        let image = self.volumes.iter().any(|(_, wish)| matches!(wish.source, VolumeSource::Image { .. }));
        // An import reads a whole image at whatever speed its file system has.
        if image { Duration::from_secs(24 * 3600) } else { Duration::from_secs(120) }
    }

    fn leaves(&self) -> Vec<Leftover> {
        self.volumes.iter().map(|(volume, _)| Leftover::Volume(volume.clone())).collect()
    }
}

/// Takes volumes to a snapshot.
pub(crate) struct Revert {
    pub(crate) agent: Agent,
    /// For people.
    pub(crate) name: String,
    pub(crate) snapshot: SnapshotId,
    pub(crate) vm: VmId,
    pub(crate) generation: Generation,
    /// Each with the snapshot that takes it back again; absent for a volume that no machine uses.
    pub(crate) volumes: Vec<(VolumeRef, Option<SnapshotId>)>,
}

impl Revert {
    async fn to(&self, volume: &VolumeRef, snapshot: SnapshotId) -> Result<()> {
        let wish = RevertVolume { snapshot, vm: self.vm, generation: self.generation };
        self.agent.revert_volume(volume, &wish).await
    }
}

#[async_trait]
impl Step for Revert {
    fn name(&self) -> String {
        format!("take the disks to {}", self.name)
    }

    async fn run(&self, _: &Context) -> Result<Value> {
        for (volume, _) in &self.volumes {
            self.to(volume, self.snapshot).await?;
        }
        Ok(Value::Null)
    }

    async fn undo(&self, _: &Context) -> Result<()> {
        for (volume, back) in self.volumes.iter().rev() {
            let Some(back) = back else { continue };
            match self.to(volume, *back).await {
                Ok(()) => {}
                Err(e) if e.kind == ErrorKind::NotFound => {
                    let message = format!("disk {volume} has lost its state before the job");
                    return Err(Error { kind: ErrorKind::Internal, message, source: Some(Box::new(e)) });
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}
