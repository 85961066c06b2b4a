//! The driver of the built-in engine: a volume is a volume of the pool, its snapshot `volume@snapshot-id`. Snapshots of
//! other names, made by the storage command line, are left alone.
//!
//! The engine does not record what a volume was made from; a volume that is there counts as the wished one if its size is
//! right, and as a clone as long as its parent is still known to be the wished one.

use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyframe_agent_api::{
    ArrayInfo, Bytes, Capabilities, ChangedExtent, CreateVolume, FaultKind, ImageFormat, ResizeVolume, SnapshotId,
    SnapshotRef, SpaceUse, VolumeInfo, VolumeRef, VolumeSource, WorkProgress,
};
use keyframe_engine::units::Bytes as Size;
use keyframe_engine::{
    CreateOptions, ErrorKind, ExtentKind, OpenOptions, Pool, Preallocation, VersionInfo, round_size,
};
use keyframe_transfer::{Exports, Image, Source};
use parking_lot::Mutex;

use super::Array;
use super::name::PART;
use crate::exports::{Blocks, Erased};
use crate::fault::{fault, of_copy, of_engine};
use crate::hypervisor::Cancel;
use crate::work::Work;
use crate::{Result, life::Life};

/// Snapshots that are asked for at once.
const PAGE: usize = 1000;

/// How a pool is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The pool's file.
    pub pool: PathBuf,
    /// Size of a new pool, whose file is sparse; `None`: the pool must be there.
    pub create: Option<Bytes>,
    /// Memory for the pool's map.
    pub cache: Bytes,
}

impl EngineOptions {
    /// Whether there is no file of the pool's name.
    pub fn is_missing(&self) -> Result<bool> {
        is_absent(&self.pool)
    }
}

/// A pool as an array.
pub struct Engine {
    name: String,
    pool: Pool,
    /// Volumes that are being made.
    making: Mutex<HashMap<String, Arc<Work>>>,
    life: Life,
}

type EngineResult<T> = std::result::Result<T, keyframe_engine::Error>;

fn lift<T>(result: EngineResult<T>) -> Result<T> {
    result.map_err(|error| of_engine(&error))
}

/// `None` for what is not there.
fn found<T>(result: EngineResult<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(of_engine(&error)),
    }
}

fn target(volume: &str, snapshot: SnapshotId) -> String {
    format!("{volume}@{snapshot}")
}

impl Engine {
    /// Opens the pool, or makes it first.
    pub fn open(name: &str, options: &EngineOptions, life: Life) -> Result<Engine> {
        if let Some(size) = options.create
            && is_absent(&options.pool)?
        {
            make_pool(&options.pool, size)?;
        }
        let open = OpenOptions { cache: Size(options.cache.0), ..OpenOptions::default() };
        let pool = lift(Pool::open(&options.pool, &open))?;
        Ok(Engine { name: name.to_owned(), pool, making: Mutex::default(), life })
    }

    /// The pool itself, for whoever serves its control socket.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn describe(&self, info: &VersionInfo) -> VolumeInfo {
        let volume = VolumeRef { array: self.name.clone(), volume: info.name.clone() };
        VolumeInfo { volume, size: Bytes(info.size.0), snapshots: u64::from(info.snapshots) }
    }

    fn existing(&self, found: &VersionInfo, wish: &CreateVolume) -> Result<VolumeInfo> {
        let differs = |how: String| {
            Err(fault(FaultKind::Exists, format!("volume {}/{} exists and {how}", self.name, found.name)))
        };
        if let VolumeSource::Snapshot(from) = &wish.source {
            let wished = target(&from.volume.volume, from.snapshot);
            match &found.parent {
                // A parent that has become a ghost is a number.
                Some(parent) if parent.contains('@') && *parent != wished && found.snapshots == 0 => {
                    return differs(format!("came from {parent} rather than {wished}"));
                }
                None => return differs("is no clone".into()),
                Some(_) => {}
            }
        }
        match wish.size.map(|size| round_size(size.0)) {
            Some(size) if size > found.size && matches!(wish.source, VolumeSource::Snapshot(_)) => {
                // A clone whose agent was killed before it was enlarged.
                lift(self.pool.resize_volume(&found.name, size))?;
                self.volume(&found.name)
            }
            Some(size) if size != found.size => differs(format!("has {} rather than {size}", found.size)),
            _ => Ok(self.describe(found)),
        }
    }

    fn make(&self, volume: &str, wish: &CreateVolume, work: &Work) -> Result<()> {
        let size = wish.size.map(|size| round_size(size.0));
        match &wish.source {
            VolumeSource::Empty => {
                let Some(size) = size else {
                    return Err(fault(FaultKind::Invalid, format!("volume {volume}: an empty volume needs a size")));
                };
                lift(self.pool.create_volume(volume, size))
            }
            VolumeSource::Image { path, format } => self.import(volume, path, *format, size, work),
            VolumeSource::Snapshot(from) => self.clone_from(volume, from, size),
        }
    }

    fn clone_from(&self, volume: &str, from: &SnapshotRef, size: Option<Size>) -> Result<()> {
        if from.volume.array != self.name {
            let why = format!("a clone lies on the array of its source: {} is not on {}", from.volume, self.name);
            return Err(fault(FaultKind::Invalid, why));
        }
        let source = target(&from.volume.volume, from.snapshot);
        let have = lift(self.pool.show(&source))?.size;
        self.refuse_smaller(volume, have, size)?;
        lift(self.pool.clone_volume(&source, volume, ""))?;
        match size {
            Some(size) if size > have => lift(self.pool.resize_volume(volume, size)),
            _ => Ok(()),
        }
    }

    fn refuse_smaller(&self, volume: &str, have: Size, wished: Option<Size>) -> Result<()> {
        match wished {
            Some(size) if size < have => {
                let why = format!("volume {}/{volume}: its source has {have} and does not fit {size}", self.name);
                Err(fault(FaultKind::Invalid, why))
            }
            _ => Ok(()),
        }
    }

    /// Filled under another name, so that what bears the wished name is whole.
    fn import(
        &self,
        volume: &str,
        path: &str,
        format: Option<ImageFormat>,
        size: Option<Size>,
        work: &Work,
    ) -> Result<()> {
        let format = format.map(|format| match format {
            ImageFormat::Raw => Image::Raw,
            ImageFormat::Qcow2 => Image::Qcow2,
        });
        let source = Source::open(Path::new(path), format).map_err(|error| of_copy(&error))?;
        let have = source.rounded_size();
        self.refuse_smaller(volume, have, size)?;
        let part = format!("{volume}{PART}");
        // Left by an agent that was killed.
        found(self.pool.delete_volume(&part, true))?;
        lift(self.pool.create_volume(&part, size.unwrap_or(have)))?;
        let mut ended = None;
        let mut progress = |done, total| {
            work.reached(done, total);
            let going = self.life.check().and_then(|()| refuse_cancelled(volume, work));
            going.map_err(|fault| anyhow::Error::new(ended.insert(fault).clone()))
        };
        let filled = source.fill(&self.pool, &part, &mut progress);
        let filled = filled.map_err(|error| ended.unwrap_or_else(|| of_copy(&error)));
        let whole = filled.and_then(|_| lift(self.pool.rename(&part, volume)));
        whole.map_err(|fault| match found(self.pool.delete_volume(&part, true)) {
            Ok(_) => fault,
            Err(left) => crate::fault::fault(fault.kind, format!("{fault}; volume {part} is left over: {left}")),
        })
    }

    fn targets_of(&self, volume: &str) -> Result<Vec<String>> {
        let mut targets = vec![volume.to_owned()];
        self.each_snapshot(volume, |info| targets.push(info.name.clone()))?;
        Ok(targets)
    }

    fn each_snapshot(&self, volume: &str, mut visit: impl FnMut(&VersionInfo)) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = lift(self.pool.snapshots(volume, after.as_deref(), PAGE))?;
            page.iter().for_each(&mut visit);
            if page.len() < PAGE {
                return Ok(());
            }
            after = page.last().and_then(|info| info.name.split_once('@')).map(|(_, name)| name.to_owned());
        }
    }
}

fn refuse_cancelled(volume: &str, work: &Work) -> Result<()> {
    if work.cancelled() {
        let why = format!("making volume {volume} was cancelled; nothing of it is left");
        return Err(fault(FaultKind::Conflict, why));
    }
    Ok(())
}

/// Whether nothing at all bears the name. What cannot be looked at, or leads nowhere, is a pool that is away for now.
fn is_absent(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(crate::fault::of_io(format_args!("look for the pool {}", path.display()), &error)),
    }
}

fn make_pool(path: &Path, size: Bytes) -> Result<()> {
    // Under another name first: a pool that is being made when the agent is killed is made again.
    let new = path.with_extension("kf.new");
    crate::durable::remove_file(&new)?;
    lift(Pool::create(&new, &CreateOptions { size: Size(size.0), preallocation: Preallocation::Off }))?;
    // Nothing is acknowledged by a pool whose name may be gone after a power failure.
    crate::durable::place_new(&new, path)
        .map_err(|error| crate::fault::of_io(format_args!("make {}", path.display()), &error))
}

impl Array for Engine {
    fn info(&self) -> Result<ArrayInfo> {
        let info = self.pool.info();
        Ok(ArrayInfo {
            name: self.name.clone(),
            driver: "engine".into(),
            capacity: Bytes(info.size.0),
            used: Bytes(info.used.0),
            capabilities: Capabilities {
                group_snapshot: true,
                delete_any: true,
                exact_space: true,
                diff: true,
                max_snapshots: None,
            },
        })
    }

    fn create(&self, volume: &str, wish: &CreateVolume) -> Result<VolumeInfo> {
        let work = match self.making.lock().entry(volume.to_owned()) {
            Entry::Occupied(_) => {
                return Err(fault(FaultKind::Busy, format!("volume {}/{volume} is being made", self.name)));
            }
            Entry::Vacant(free) => Arc::clone(free.insert(Arc::default())),
        };
        let made = match found(self.pool.show(volume)) {
            Ok(Some(info)) => self.existing(&info, wish),
            Ok(None) => self.make(volume, wish, &work).and_then(|()| self.volume(volume)),
            Err(fault) => Err(fault),
        };
        self.making.lock().remove(volume);
        made
    }

    fn cancel(&self, volume: &str) {
        if let Some(work) = self.making.lock().get(volume) {
            work.cancel();
        }
    }

    fn progress(&self, volume: &str) -> WorkProgress {
        self.making.lock().get(volume).map(|work| work.progress()).unwrap_or_default()
    }

    fn volume(&self, volume: &str) -> Result<VolumeInfo> {
        lift(self.pool.show(volume)).map(|info| self.describe(&info))
    }

    fn volumes(&self, after: Option<&str>, limit: usize) -> Result<Vec<VolumeInfo>> {
        let mut page = Vec::new();
        let mut after = after.map(str::to_owned);
        while page.len() < limit {
            let found = lift(self.pool.volumes(after.as_deref(), limit - page.len()))?;
            let Some(last) = found.last() else { break };
            after = Some(last.name.clone());
            page.extend(found.iter().filter(|info| !info.name.ends_with(PART)).map(|info| self.describe(info)));
        }
        Ok(page)
    }

    fn resize(&self, volume: &str, wish: &ResizeVolume) -> Result<VolumeInfo> {
        let (have, size) = (lift(self.pool.show(volume))?.size, round_size(wish.size.0));
        if size < have && !wish.shrink {
            let why =
                format!("volume {}/{volume} has {have}; shrinking it to {size} loses data: say shrink", self.name);
            return Err(fault(FaultKind::Invalid, why));
        }
        if size != have {
            lift(self.pool.resize_volume(volume, size))?;
        }
        self.volume(volume)
    }

    fn delete(&self, volume: &str) -> Result<()> {
        found(self.pool.delete_volume(&format!("{volume}{PART}"), true))?;
        found(self.pool.delete_volume(volume, true)).map(drop)
    }

    fn snapshot(&self, volumes: &[&str], snapshot: SnapshotId) -> Result<()> {
        let mut have = Vec::new();
        for volume in volumes {
            if self.has_snapshot(volume, snapshot)? {
                have.push(*volume);
            }
        }
        if have.len() == volumes.len() {
            return Ok(());
        }
        for volume in have {
            self.delete_snapshot(volume, snapshot)?;
        }
        let name = snapshot.to_string();
        let targets: Vec<_> = volumes.iter().map(|volume| ((*volume).to_owned(), name.clone())).collect();
        lift(self.pool.snapshot(&targets)).map(drop)
    }

    fn has_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<bool> {
        found(self.pool.show(&target(volume, snapshot))).map(|found| found.is_some())
    }

    fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotId>> {
        let mut ids = Vec::new();
        self.each_snapshot(volume, |info| {
            ids.extend(info.name.split_once('@').and_then(|(_, name)| name.parse::<SnapshotId>().ok()));
        })?;
        Ok(ids)
    }

    fn delete_snapshot(&self, volume: &str, snapshot: SnapshotId) -> Result<()> {
        found(self.pool.delete_snapshot(&target(volume, snapshot))).map(drop)
    }

    fn revert(&self, volume: &str, snapshot: SnapshotId) -> Result<()> {
        lift(self.pool.revert(volume, &snapshot.to_string(), None))
    }

    fn space(&self, volume: &str, snapshot: Option<SnapshotId>) -> Result<SpaceUse> {
        let name = snapshot.map_or_else(|| volume.to_owned(), |snapshot| target(volume, snapshot));
        let space = lift(self.pool.space(&name))?;
        Ok(SpaceUse { referenced: Bytes(space.referenced.0), unique: Bytes(space.unique.0) })
    }

    fn would_free(&self, doomed: &[(&str, Option<SnapshotId>)]) -> Result<Bytes> {
        let mut targets = HashSet::new();
        for (volume, snapshot) in doomed {
            let names = match snapshot {
                Some(snapshot) => vec![target(volume, *snapshot)],
                None if found(self.pool.show(volume))?.is_some() => self.targets_of(volume)?,
                None => Vec::new(),
            };
            for name in names {
                if found(self.pool.show(&name))?.is_some() {
                    targets.insert(name);
                }
            }
        }
        let targets: Vec<String> = targets.into_iter().collect();
        if targets.is_empty() { Ok(Bytes(0)) } else { lift(self.pool.would_free(&targets)).map(|free| Bytes(free.0)) }
    }

    fn diff(
        &self,
        from: Option<(&str, SnapshotId)>,
        to: (&str, SnapshotId),
        after: Bytes,
        limit: usize,
    ) -> Result<Vec<ChangedExtent>> {
        let from = from.map(|(volume, snapshot)| target(volume, snapshot));
        let mut extents = Vec::new();
        lift(self.pool.diff(from.as_deref(), &target(to.0, to.1), &mut |extent| {
            if extent.offset >= after.0 && extents.len() < limit {
                let zero = extent.kind != ExtentKind::Data;
                extents.push(ChangedExtent { offset: Bytes(extent.offset), length: Bytes(extent.len), zero });
            }
            Ok(())
        }))?;
        Ok(extents)
    }

    fn blocks(&self) -> Arc<dyn Blocks> {
        let exports = Exports::all(self.pool.clone()).reporting(|text| tracing::error!("{text}"));
        Arc::new(Erased::new(exports))
    }

    fn close(&self) -> Result<()> {
        lift(self.pool.clone().close())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_is_away_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (pool, elsewhere) = (dir.path().join("pool.kf"), dir.path().join("disk"));
        let options = EngineOptions { pool: pool.clone(), create: Some(Bytes::mib(32)), cache: Bytes::mib(4) };
        let open = || Engine::open("local", &options, Life::new());
        std::os::unix::fs::symlink(elsewhere.join("pool.kf"), &pool).unwrap();
        assert!(open().is_err());
        assert!(pool.is_symlink() && !elsewhere.exists(), "it was replaced");
        std::fs::create_dir(&elsewhere).unwrap();
        assert!(open().is_err(), "made where somebody else's was");
        std::fs::remove_file(&pool).unwrap();
        open().unwrap().close().unwrap();
        let (made, other) = (std::fs::read(&pool).unwrap(), dir.path().join("other"));
        std::fs::write(&other, "another").unwrap();
        assert!(crate::durable::place_new(&other, &pool).is_err());
        assert!(std::fs::read(&pool).unwrap() == made, "it was overwritten");
    }

    /// Whenever it is called off; and nothing of it is in the way of the next.
    #[test]
    fn an_import_ends_when_it_is_called_off() {
        let dir = tempfile::tempdir().unwrap();
        let pool = dir.path().join("pool.kf");
        let options = EngineOptions { pool, create: Some(Bytes::mib(128)), cache: Bytes::mib(4) };
        let engine = Engine::open("local", &options, Life::new()).unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, vec![7; 32 << 20]).unwrap();
        let source = VolumeSource::Image { path: image.display().to_string(), format: Some(ImageFormat::Raw) };
        let wish = CreateVolume { source, size: None };
        engine.cancel("v");
        let refused = std::thread::scope(|scope| {
            let making = scope.spawn(|| engine.create("v", &wish));
            while engine.progress("v").total == 0 {
                std::thread::yield_now();
            }
            while !making.is_finished() {
                engine.cancel("v");
            }
            making.join().unwrap().unwrap_err()
        });
        assert_eq!(refused.kind, FaultKind::Conflict, "{refused}");
        assert!(engine.volumes(None, 10).unwrap().is_empty());
        assert_eq!(engine.create("v", &wish).unwrap().size, Bytes::mib(32));
        engine.close().unwrap();
    }
}
