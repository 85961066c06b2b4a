//! What can be done to volumes, on any array.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyframe_agent_api::{
    Bytes, CreateVolume, DiffRequest, DiffResponse, FaultKind, ResizeVolume, RevertVolume, SnapshotId, SnapshotRef,
    SpaceRequest, SpaceResponse, SpaceUse, VolumeInfo, VolumeRef, VolumeSource, WorkProgress,
};

use crate::Result;
use crate::array::Arrays;
use crate::fault::fault;
use crate::hypervisor::Hypervisor;
use crate::images::Images;

/// How long a volume may still be attached to a machine that has just ended.
const LETTING_GO: Duration = Duration::from_secs(5);
/// Between looks whether it has been let go.
const LOOK: Duration = Duration::from_millis(5);
/// Most extents in one answer.
const MOST_EXTENTS: u32 = 100_000;

/// The volumes of all arrays.
pub struct Volumes {
    arrays: Arrays,
    images: Images,
    hypervisor: Arc<dyn Hypervisor>,
}

impl Volumes {
    /// Of these arrays. They are filled from images that may be read, and from what belongs to the hypervisor.
    pub fn new(arrays: Arrays, images: Images, hypervisor: Arc<dyn Hypervisor>) -> Volumes {
        Volumes { arrays, images, hypervisor }
    }

    /// Makes one.
    pub fn create(&self, volume: &VolumeRef, wish: &CreateVolume) -> Result<VolumeInfo> {
        let array = self.arrays.of(volume)?;
        let VolumeSource::Image { path, format } = &wish.source else { return array.create(&volume.volume, wish) };
        let path = match self.images.check(Path::new(path)) {
            Ok(real) => real,
            // The firmware's fresh store comes with this host.
            Err(_) if self.hypervisor.info()?.uefi_variables.as_deref() == Some(Path::new(path)) => path.into(),
            Err(fault) => return Err(fault),
        };
        let source = VolumeSource::Image { path: path.display().to_string(), format: *format };
        array.create(&volume.volume, &CreateVolume { source, ..wish.clone() })
    }

    /// Ends the making of one, whose call fails.
    pub fn cancel(&self, volume: &VolumeRef) -> Result<()> {
        self.arrays.of(volume)?.cancel(&volume.volume);
        Ok(())
    }

    /// How far that is, while it is filled from an image.
    pub fn progress(&self, volume: &VolumeRef) -> Result<WorkProgress> {
        Ok(self.arrays.of(volume)?.progress(&volume.volume))
    }

    /// Looks at one.
    pub fn get(&self, volume: &VolumeRef) -> Result<VolumeInfo> {
        self.arrays.of(volume)?.volume(&volume.volume)
    }

    /// A page of those on one array.
    pub fn list(&self, array: &str, after: Option<&str>, limit: usize) -> Result<Vec<VolumeInfo>> {
        self.arrays.get(array)?.volumes(after, limit)
    }

    /// Sets its size.
    pub fn resize(&self, volume: &VolumeRef, wish: &ResizeVolume) -> Result<VolumeInfo> {
        let array = self.arrays.of(volume)?;
        array.resize(&volume.volume, wish)
    }

    /// Takes it back to a snapshot.
    pub fn revert(&self, volume: &VolumeRef, wish: &RevertVolume) -> Result<()> {
        let array = self.arrays.of(volume)?;
        when_let_go(|| array.revert(&volume.volume, wish.snapshot))
    }

    /// Deletes it with its snapshots.
    pub fn delete(&self, volume: &VolumeRef) -> Result<()> {
        let array = self.arrays.of(volume)?;
        when_let_go(|| array.delete(&volume.volume))
    }

    /// Deletes one snapshot.
    pub fn delete_snapshot(&self, volume: &VolumeRef, snapshot: SnapshotId) -> Result<()> {
        self.arrays.of(volume)?.delete_snapshot(&volume.volume, snapshot)
    }

    /// What snapshots and volumes hold.
    pub fn space(&self, ask: &SpaceRequest) -> Result<SpaceResponse> {
        let one = |volume: &VolumeRef, snapshot: Option<SnapshotId>| -> Result<Option<SpaceUse>> {
            match self.arrays.of(volume)?.space(&volume.volume, snapshot) {
                Err(fault) if fault.kind == FaultKind::NotFound => Ok(None),
                space => space.map(Some),
            }
        };
        let mut would_free = Bytes(0);
        for (name, array) in self.arrays.iter() {
            let snapshots = ask.would_free.iter().filter(|doomed| doomed.volume.array == name);
            let snapshots = snapshots.map(|doomed| (doomed.volume.volume.as_str(), Some(doomed.snapshot)));
            let volumes = ask.would_free_volumes.iter().filter(|volume| volume.array == name);
            let doomed: Vec<_> = snapshots.chain(volumes.map(|volume| (volume.volume.as_str(), None))).collect();
            if !doomed.is_empty() {
                would_free = would_free + array.would_free(&doomed)?;
            }
        }
        Ok(SpaceResponse {
            each: ask.each.iter().map(|part| one(&part.volume, Some(part.snapshot))).collect::<Result<_>>()?,
            would_free,
            heads: ask.heads.iter().map(|volume| one(volume, None)).collect::<Result<_>>()?,
        })
    }

    /// What changed between two snapshots.
    pub fn diff(&self, ask: &DiffRequest) -> Result<DiffResponse> {
        let array = self.arrays.of(&ask.to.volume)?;
        if let Some(from) = &ask.from
            && from.volume.array != ask.to.volume.array
        {
            let why = format!("{} and {} lie on different arrays and have no difference", from.volume, ask.to.volume);
            return Err(fault(FaultKind::Invalid, why));
        }
        fn part(of: &SnapshotRef) -> (&str, SnapshotId) {
            (of.volume.volume.as_str(), of.snapshot)
        }
        let limit = ask.limit.clamp(1, MOST_EXTENTS) as usize;
        let extents = array.diff(ask.from.as_ref().map(part), part(&ask.to), ask.after, limit)?;
        let full = extents.len() == limit;
        let next = extents.last().filter(|_| full).map(|last| last.offset + last.length);
        Ok(DiffResponse { extents, next })
    }
}

/// Tries again while the volume is in use: a hypervisor's process that has ended is noticed a moment later.
fn when_let_go<T>(mut act: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + LETTING_GO;
    loop {
        match act() {
            Err(fault) if fault.kind == FaultKind::Busy && Instant::now() < until => std::thread::sleep(LOOK),
            result => return result,
        }
    }
}
