//! An array in plain files, which does what it is told simply and slowly, and goes wrong when it is told to.

mod device;
mod faults;
mod sparse;
mod store;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent_api::{
    ArrayInfo, Bytes, Capabilities, ChangedExtent, CreateVolume, FaultKind, ResizeVolume, SnapshotId, SpaceUse,
    VolumeInfo, VolumeRef, VolumeSource, WorkProgress,
};
use parking_lot::Mutex;

use self::sparse::BLOCK;
use self::store::Store;
use super::Array;
use crate::Result;
use crate::exports::{Blocks, Erased};
use crate::fault::fault;
use crate::hypervisor::Cancel;
use crate::life::Life;
use crate::work::Work;

pub use faults::{Faults, When};

/// What a fake array is like.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    /// Several volumes are snapshotted at one instant; otherwise writes may fall between them.
    pub group_snapshot: bool,
    /// All it says it can hold.
    pub capacity: Bytes,
    /// Most snapshots of one volume.
    pub max_snapshots: Option<u32>,
}

impl Default for FakeOptions {
    fn default() -> FakeOptions {
        FakeOptions { group_snapshot: true, capacity: Bytes(1 << 40), max_snapshots: None }
    }
}

/// The array.
pub struct FakeArray {
    name: String,
    options: FakeOptions,
    store: Arc<Store>,
    faults: Faults,
    /// Volumes that are being filled.
    filling: Mutex<HashMap<String, Arc<Work>>>,
}

impl FakeArray {
    /// Opens what lies in the folder, or begins there.
    pub fn open(name: &str, dir: &Path, options: &FakeOptions, life: Life) -> Result<FakeArray> {
        let store = Arc::new(Store::open(name, dir)?);
        let (name, options, filling) = (name.to_owned(), options.clone(), Mutex::default());
        Ok(FakeArray { name, options, store, faults: Faults::new(life), filling })
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The content of a version, for comparing.
    pub fn content(&self, volume: &str, snapshot: Option<SnapshotId>) -> Result<Vec<u8>> {
        let path = self.store.version(volume, snapshot)?;
        std::fs::read(&path).map_err(|error| crate::fault::of_io(format_args!("read {}", path.display()), &error))
    }

    fn describe(&self, volume: &str) -> Result<VolumeInfo> {
        Ok(VolumeInfo {
            volume: VolumeRef { array: self.name.clone(), volume: volume.to_owned() },
            size: self.store.size(volume)?,
            snapshots: self.store.snapshots(volume)?.len() as u64,
        })
    }

    fn refuse_full(&self) -> Result<()> {
        if self.faults.is_full() {
            return Err(fault(FaultKind::NoSpace, format!("array {} is full; delete something", self.name)));
        }
        Ok(())
    }

    fn make(&self, volume: &str, wish: &CreateVolume) -> Result<()> {
        self.refuse_full()?;
        let from = match &wish.source {
            VolumeSource::Empty => None,
            VolumeSource::Image { path, .. } => {
                self.read(volume)?;
                Some(Path::new(path).to_owned())
            }
            VolumeSource::Snapshot(from) if from.volume.array == self.name => {
                Some(self.store.version(&from.volume.volume, Some(from.snapshot))?)
            }
            VolumeSource::Snapshot(from) => {
                let why = format!("a clone lies on the array of its source: {} is not on {}", from.volume, self.name);
                return Err(fault(FaultKind::Invalid, why));
            }
        };
        let have = match &from {
            Some(path) => std::fs::metadata(path).map(|found| found.len()).map_err(|error| {
                fault(FaultKind::NotFound, format!("cannot make {volume} from {}: {error}", path.display()))
            })?,
            None => 0,
        };
        let size = wish.size.map_or(have, |size| size.0).next_multiple_of(BLOCK);
        if size == 0 {
            return Err(fault(FaultKind::Invalid, format!("volume {volume}: an empty volume needs a size")));
        }
        if size < have {
            return Err(fault(FaultKind::Invalid, format!("volume {volume}: {have} bytes do not fit {size}")));
        }
        self.store.create(volume, wish, from.as_deref(), Bytes(size))
    }

    /// Reads an image for as long as the faults say.
    fn read(&self, volume: &str) -> Result<()> {
        let work = Arc::new(Work::default());
        work.reached(1, 2);
        self.filling.lock().insert(volume.to_owned(), Arc::clone(&work));
        while self.faults.are_images_endless() && !work.cancelled() {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.filling.lock().remove(volume);
        match work.cancelled() {
            true => Err(fault(FaultKind::Conflict, format!("making volume {volume} was cancelled"))),
            false => Ok(()),
        }
    }

    fn take(&self, volumes: &[&str], snapshot: SnapshotId) -> Result<()> {
        self.refuse_full()?;
        if let Some(most) = self.options.max_snapshots {
            for volume in volumes {
                if self.store.snapshots(volume)?.len() as u64 >= u64::from(most) {
                    let why = format!("volume {}/{volume} has {most} snapshots, the most it can have", self.name);
                    return Err(fault(FaultKind::Conflict, why));
                }
            }
        }
        let _all = self.options.group_snapshot.then(|| self.store.instant.write());
        for volume in volumes {
            let _one = (!self.options.group_snapshot).then(|| self.store.instant.write());
            if let Err(fault) = self.faults.around("snapshot-one", || self.store.snapshot(volume, snapshot)) {
                for volume in volumes.iter().filter(|_| self.faults.alive()) {
                    self.store.delete_snapshot(volume, snapshot)?;
                }
                return Err(fault);
            }
        }
        Ok(())
    }
}

impl Array for FakeArray {
    fn info(&self) -> Result<ArrayInfo> {
        self.faults.around("info", || {
            let all: HashSet<_> = self.store.versions()?.into_iter().collect();
            Ok(ArrayInfo {
                name: self.name.clone(),
                driver: "fake".into(),
                capacity: self.options.capacity,
                used: self.store.only_in(&all)?,
                capabilities: Capabilities {
                    group_snapshot: self.options.group_snapshot,
                    delete_any: true,
                    exact_space: true,
                    diff: true,
                    max_snapshots: self.options.max_snapshots,
                },
            })
        })
    }

    fn create(&self, volume: &str, wish: &CreateVolume) -> Result<VolumeInfo> {
        self.faults.around("create", || {
            match self.store.wish(volume) {
                Ok(made) if made.source != wish.source || (wish.size.is_some() && made.size != wish.size) => {
                    let why = format!("volume {}/{volume} exists and was made otherwise", self.name);
                    return Err(fault(FaultKind::Exists, why));
                }
                Ok(_) => {}
                Err(_) => self.make(volume, wish)?,
            }
            self.describe(volume)
        })
    }

    fn cancel(&self, volume: &str) {
        if let Some(work) = self.filling.lock().get(volume) {
            work.cancel();
        }
    }

    fn progress(&self, volume: &str) -> WorkProgress {
        self.filling.lock().get(volume).map(|work| work.progress()).unwrap_or_default()
    }

    fn volume(&self, volume: &str) -> Result<VolumeInfo> {
        self.faults.around("volume", || self.describe(volume))
    }

    fn volumes(&self, after: Option<&str>, limit: usize) -> Result<Vec<VolumeInfo>> {
        self.faults.around("volumes", || {
            let names = self.store.volumes()?;
            let page = names.iter().filter(|name| after.is_none_or(|after| name.as_str() > after)).take(limit);
            page.map(|name| self.describe(name)).collect()
        })
    }

    fn resize(&self, volume: &str, wish: &ResizeVolume) -> Result<VolumeInfo> {
        self.faults.around("resize", || {
            let (have, size) = (self.store.size(volume)?, Bytes(wish.size.0.next_multiple_of(BLOCK)));
            if size < have && !wish.shrink {
                let why = format!("shrinking {}/{volume} from {have} to {size} loses data: say shrink", self.name);
                return Err(fault(FaultKind::Invalid, why));
            }
            if size < have {
                self.store.refuse_attached(volume, "shrink")?;
            }
            self.store.resize(volume, size)?;
            self.describe(volume)
        })
    }

    fn delete(&self, volume: &str) -> Result<()> {
        self.faults.around("delete", || {
            self.store.refuse_attached(volume, "delete")?;
            self.store.delete(volume)
        })
    }

    fn snapshot(&self, volumes: &[&str], snapshot: SnapshotId) -> Result<()> {
        self.faults.around("snapshot", || {
            let mut have = Vec::new();
            for volume in volumes {
                self.store.version(volume, None)?;
                have.extend(self.store.image(volume, snapshot).exists().then_some(*volume));
            }
            if have.len() == volumes.len() {
                return Ok(());
            }
            for volume in have {
                self.store.delete_snapshot(volume, snapshot)?;
            }
            self.take(volumes, snapshot)
        })
    }

    fn has_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<bool> {
        self.faults.around("has-snapshot", || Ok(self.store.image(volume, snapshot).exists()))
    }

    fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotId>> {
        self.faults.around("snapshots", || self.store.snapshots(volume))
    }

    fn delete_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<()> {
        self.faults.around("delete-snapshot", || {
            self.store.refuse_attached(&format!("{volume}@{snapshot}"), "delete")?;
            self.store.delete_snapshot(volume, snapshot)
        })
    }

    fn revert(&self, volume: &str, snapshot: SnapshotId) -> Result<()> {
        self.faults.around("revert", || {
            self.store.refuse_attached(volume, "revert")?;
            self.store.revert(volume, snapshot)
        })
    }

    fn space(&self, volume: &str, snapshot: Option<SnapshotId>) -> Result<SpaceUse> {
        self.faults.around("space", || {
            let referenced = Bytes(self.store.blocks(volume, snapshot)?.len() as u64 * BLOCK);
            let unique = self.store.only_in(&HashSet::from([(volume.to_owned(), snapshot)]))?;
            Ok(SpaceUse { referenced, unique })
        })
    }

    fn would_free(&self, doomed: &[(&str, Option<SnapshotId>)]) -> Result<Bytes> {
        self.faults.around("would-free", || {
            let all = self.store.versions()?.into_iter();
            let goes = |version: &(String, Option<SnapshotId>)| {
                doomed.iter().any(|(volume, which)| *volume == version.0 && (which.is_none() || *which == version.1))
            };
            self.store.only_in(&all.filter(goes).collect())
        })
    }

    fn diff(
        &self,
        from: Option<(&str, SnapshotId)>,
        to: (&str, SnapshotId),
        after: Bytes,
        limit: usize,
    ) -> Result<Vec<ChangedExtent>> {
        self.faults.around("diff", || {
            let new = self.store.blocks(to.0, Some(to.1))?;
            let old = match from {
                Some((volume, snapshot)) => self.store.blocks(volume, Some(snapshot))?,
                None => Default::default(),
            };
            let mut extents: Vec<ChangedExtent> = Vec::new();
            let offsets: std::collections::BTreeSet<u64> = old.keys().chain(new.keys()).copied().collect();
            for offset in offsets.into_iter().filter(|offset| old.get(offset) != new.get(offset)) {
                let zero = !new.contains_key(&offset);
                match extents.last_mut() {
                    Some(last) if last.zero == zero && last.offset.0 + last.length.0 == offset => {
                        last.length.0 += BLOCK;
                    }
                    _ => extents.push(ChangedExtent { offset: Bytes(offset), length: Bytes(BLOCK), zero }),
                }
            }
            Ok(extents.into_iter().filter(|extent| extent.offset >= after).take(limit).collect())
        })
    }

    fn blocks(&self) -> Arc<dyn Blocks> {
        Arc::new(Erased::new(device::FakeBlocks::new(Arc::clone(&self.store), self.faults.clone())))
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
