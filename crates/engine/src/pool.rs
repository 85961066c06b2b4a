//! The pool: what a program opens, asks and closes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::check;
use crate::core::PlantedBug;
use crate::create::{check_pool_size, now};
use crate::device::{Device, FileDevice, IoMode};
use crate::disk::object::{Object, State};
use crate::disk::record::Record;
use crate::disk::superblock::Superblock;
use crate::error::{Error, ErrorKind, Result};
use crate::info::{CheckReport, DiffExtent, PoolInfo, SnapshotReport, SpaceInfo, TreeNode, VersionInfo};
use crate::keeper::{Did, Keeper};
use crate::queue::Queue;
use crate::recovery;
use crate::shared::Shared;
use crate::units::{BLOCK, Bytes, Lba, VersionId};
use crate::volume::{Access, Volume};

/// How to open a pool.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Memory for metadata.
    pub cache: Bytes,
    /// How guest I/O reaches the device.
    pub io: IoMode,
    /// Run the background worker on a thread of its own. Without it, tests drive it with [`Pool::step`]; nobody else commits
    /// unflushed records then, and writes wait for ever once the journal's buffer is full.
    pub background: bool,
    /// A bug to plant.
    pub planted: PlantedBug,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions { cache: Bytes(256 << 20), io: IoMode::Auto, background: true, planted: PlantedBug::None }
    }
}

struct Background {
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    shared: Arc<Shared>,
    keeper: Arc<Mutex<Keeper>>,
    background: Background,
    path: PathBuf,
    damaged_superblock: Option<u8>,
    replayed: u64,
}

/// An open pool. Clones are handles on the same pool; the last one to go closes it.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

impl Pool {
    /// Opens and locks a pool, replaying its journal after a crash.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Pool> {
        let device = FileDevice::open(path, options.io)?;
        Self::open_on(Arc::new(device), path, options)
    }

    /// Opens a pool on any device.
    pub fn open_on(device: Arc<dyn Device>, path: &Path, options: &OpenOptions) -> Result<Pool> {
        let opened = recovery::open(device, options.cache.0 as usize, options.planted, recovery::Mode::Use)?;
        let keeper = Arc::new(Mutex::new(Keeper::new(Arc::clone(&opened.shared), opened.superblock)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = if options.background {
            let (shared, keeper, stop) = (Arc::clone(&opened.shared), Arc::clone(&keeper), Arc::clone(&stop));
            let spawned = std::thread::Builder::new()
                .name("keyframe-keeper".into())
                .spawn(move || run_keeper(&shared, &keeper, &stop))
                .map_err(|e| Error::io("cannot start the background worker", e))?;
            Some(spawned)
        } else {
            None
        };
        Ok(Pool {
            inner: Arc::new(Inner {
                shared: opened.shared,
                keeper,
                background: Background { stop, thread: Mutex::new(thread) },
                path: path.to_owned(),
                damaged_superblock: opened.damaged_copy,
                replayed: opened.replayed,
            }),
        })
    }

    /// Checkpoints and closes. Other handles find the pool closed for changes.
    pub fn close(self) -> Result<()> {
        self.inner.close()
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    fn run_durably<T>(&self, step: impl FnMut(&mut crate::core::Core) -> crate::core::stop::Step<T>) -> Result<T> {
        let value = self.shared().run(step)?;
        let last = self.shared().lock().journal.last_record();
        self.shared().commit(last)?;
        self.shared().moved.notify_all();
        Ok(value)
    }

    /// Journal groups that opening replayed.
    pub fn replayed_groups(&self) -> u64 {
        self.inner.replayed
    }

    /// One piece of background work, for pools opened without a background thread. `false`: nothing is left to do.
    pub fn step(&self) -> Result<bool> {
        Ok(self.inner.keeper.lock().step()? != Did::Nothing)
    }

    /// Takes a checkpoint now.
    pub fn checkpoint(&self) -> Result<()> {
        self.inner.keeper.lock().checkpoint_now()
    }

    /// The pool as a whole.
    pub fn info(&self) -> PoolInfo {
        let superblock: Superblock = self.inner.keeper.lock().superblock().clone();
        let core = self.shared().lock();
        PoolInfo {
            path: self.inner.path.clone(),
            uuid: superblock.uuid.iter().map(|b| format!("{b:02x}")).collect(),
            created: superblock.created,
            size: Bytes(core.state.blocks * BLOCK),
            used: Bytes(core.space.used() * BLOCK),
            free: Bytes(core.free_for_writes() * BLOCK),
            reserve: Bytes(core.slop() * BLOCK),
            pending: Bytes(core.space.pending() * BLOCK),
            volumes: u64::from(core.state.volumes),
            snapshots: core.state.snapshots,
            ghosts: core.state.ghosts,
            checkpoints: superblock.generation,
            journal_percent: core.journal.fill_percent(),
            cached_pages: core.cache.len() as u64,
            dirty_pages: core.cache.dirty_len() as u64,
            stopped: core.poisoned.clone(),
            damaged_superblock: self.inner.damaged_superblock,
        }
    }

    /// Makes the pool larger: a file to `size`, a block device to what it has. Returns the new size.
    pub fn grow(&self, size: Option<Bytes>) -> Result<Bytes> {
        let device = &self.shared().device;
        let fail = |e| Error::io(format!("cannot grow {}", device.name()), e);
        let len = device.len().map_err(fail)?;
        let wanted = size.map_or(len, |s| s.0) / BLOCK;
        let have = self.shared().lock().state.blocks;
        if wanted < have {
            let (wanted, have) = (Bytes(wanted * BLOCK), Bytes(have * BLOCK));
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("pool {} has {have} and cannot shrink to {wanted}", device.name()),
            ));
        }
        check_pool_size(&device.name(), wanted)?;
        if wanted * BLOCK > len {
            device.extend(wanted * BLOCK).map_err(fail)?;
        }
        // Checked again where it is done: somebody else may have grown it further meanwhile.
        let now = self.run_durably(|core| {
            if wanted > core.state.blocks {
                core.execute_record(&Record::Grow { blocks: wanted })?;
            }
            Ok(core.state.blocks)
        })?;
        self.checkpoint()?;
        Ok(Bytes(now * BLOCK))
    }

    /// A new, empty volume.
    pub fn create_volume(&self, name: &str, size: Bytes) -> Result<()> {
        let time = now();
        self.run_durably(|core| core.create_volume(name, size, time))
    }

    /// Changes a volume's size; what lies beyond a smaller size is dropped.
    pub fn resize_volume(&self, name: &str, size: Bytes) -> Result<()> {
        let head = self.shared().run(|core| core.check_resize(name, size))?;
        let mut from = size.blocks();
        while from < head.blocks {
            from = self.shared().run(|core| {
                let to = core.survey_punch(head.id, Lba(from), Lba(head.blocks))?;
                let kind = crate::disk::entry::Kind::Discard;
                core.execute_record(&Record::Punch { head: head.id, from: Lba(from), to, kind })?;
                Ok(to.0)
            })?;
        }
        self.run_durably(|core| core.resize_volume(name, size))
    }

    /// Renames a volume or snapshot; a snapshot's new name is given without its volume.
    pub fn rename(&self, target: &str, name: &str) -> Result<()> {
        self.run_durably(|core| core.rename(target, name))
    }

    /// Deletes a volume, its snapshots included if asked. Clones stay.
    pub fn delete_volume(&self, name: &str, with_snapshots: bool) -> Result<()> {
        self.run_durably(|core| core.delete_volume(name, with_snapshots))
    }

    /// Snapshots of one or several volumes, given as (volume, name of the snapshot), all at one instant.
    pub fn snapshot(&self, targets: &[(String, String)]) -> Result<SnapshotReport> {
        let (time, start) = (now(), Instant::now());
        let mut held = Duration::ZERO;
        self.run_durably(|core| {
            // Guests are held while the core is: this one step.
            let step = Instant::now();
            let result = core.snapshot(targets, time);
            held = held.max(step.elapsed());
            result
        })?;
        Ok(SnapshotReport { held, total: start.elapsed() })
    }

    /// A new volume from `volume@snapshot`, or from a live volume by way of a new snapshot named `via`.
    pub fn clone_volume(&self, source: &str, name: &str, via: &str) -> Result<()> {
        let time = now();
        self.run_durably(|core| core.clone_volume(source, name, via, time)).map(|_| ())
    }

    /// A volume continues from one of its snapshots; its state until now is kept as the snapshot `keep`, or dropped.
    pub fn revert(&self, volume: &str, snapshot: &str, keep: Option<&str>) -> Result<()> {
        let time = now();
        self.run_durably(|core| core.revert(volume, snapshot, keep, time)).map(|_| ())
    }

    /// Deletes a snapshot. What only it held is reclaimed in the background.
    pub fn delete_snapshot(&self, target: &str) -> Result<()> {
        self.run_durably(|core| core.delete_snapshot(target))
    }

    /// The snapshots of the same volume that a deletion of the subtree would delete, children first.
    pub fn subtree(&self, target: &str) -> Result<Vec<String>> {
        let top = self.shared().run(|core| core.resolve(target))?;
        if top.state != State::Snapshot {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{target} is not a snapshot; name it as VOLUME@SNAPSHOT"),
            ));
        }
        let (volume, _) = target.split_once('@').unwrap_or((target, ""));
        let mut found = Vec::new();
        let mut stack = vec![top.id];
        while let Some(id) = stack.pop() {
            let version = self.shared().version(id)?;
            let mut next = version.first_child;
            while let Some(child) = next.some() {
                stack.push(child);
                next = self.shared().version(child)?.next_sibling;
            }
            if version.state == State::Snapshot && version.volume == top.volume {
                found.push(format!("{volume}@{}", version.name));
            }
        }
        found.reverse();
        Ok(found)
    }

    /// Deletes a snapshot and all snapshots of its volume that came from it. Clones and the volume itself stay.
    pub fn delete_subtree(&self, target: &str) -> Result<Vec<String>> {
        let names = self.subtree(target)?;
        for name in &names {
            let version = self.shared().run(|core| core.resolve(name))?;
            if self.shared().lock().attachments(version.id) > 0 {
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!("cannot delete {name}: it is in use; disconnect first"),
                ));
            }
        }
        for name in &names {
            self.shared().run(|core| core.delete_snapshot(name))?;
        }
        self.run_durably(|_| Ok(()))?;
        Ok(names)
    }

    /// Volumes in the order of their creation, after `after`.
    pub fn volumes(&self, after: Option<&str>, limit: usize) -> Result<Vec<VersionInfo>> {
        let list = |core: &mut crate::core::Core| {
            let mut next = match after {
                Some(name) => core.volume_named(name)?.next,
                None => core.state.first_volume,
            };
            let mut heads = Vec::new();
            while let Some(id) = next.some().filter(|_| heads.len() < limit) {
                let Some(Object::Volume(volume)) = core.object(id)? else { break };
                heads.push(volume.head);
                next = volume.next;
            }
            Ok(heads)
        };
        self.describe_all(&self.shared().run(list)?)
    }

    /// Snapshots of a volume in the order of their creation, after the one named `after`.
    pub fn snapshots(&self, volume: &str, after: Option<&str>, limit: usize) -> Result<Vec<VersionInfo>> {
        let list = |core: &mut crate::core::Core| {
            let owner = core.volume_named(volume)?;
            let mut next = match after {
                Some(name) => core.snapshot_named(&owner, name)?.next,
                None => owner.first_snapshot,
            };
            let mut versions = Vec::new();
            while let Some(id) = next.some().filter(|_| versions.len() < limit) {
                versions.push(id);
                next = core.version(id)?.next;
            }
            Ok(versions)
        };
        self.describe_all(&self.shared().run(list)?)
    }

    /// What each of these tells about itself; one that was deleted since it was listed is left out.
    fn describe_all(&self, ids: &[VersionId]) -> Result<Vec<VersionInfo>> {
        let mut out = Vec::with_capacity(ids.len());
        for id in ids {
            let found = self.shared().run(|core| core.object(*id))?;
            if matches!(found, Some(Object::Version(v)) if !matches!(v.state, State::Ghost { .. })) {
                out.push(self.shared().describe(&self.shared().version(*id)?)?);
            }
        }
        Ok(out)
    }

    /// One volume (`volume`) or snapshot (`volume@snapshot`).
    pub fn show(&self, target: &str) -> Result<VersionInfo> {
        let version = self.shared().run(|core| core.resolve(target))?;
        self.shared().describe(&version)
    }

    /// The family tree that a volume belongs to, clones and deleted versions included.
    pub fn tree(&self, target: &str) -> Result<TreeNode> {
        let version = self.shared().run(|core| core.resolve(target))?;
        self.shared().tree(version.id)
    }

    /// What a volume or snapshot holds, exactly.
    pub fn space(&self, target: &str) -> Result<SpaceInfo> {
        let version = self.shared().run(|core| core.resolve(target))?;
        self.shared().space(&version)
    }

    /// What deleting all of these together would free.
    pub fn would_free(&self, targets: &[String]) -> Result<Bytes> {
        let ids: Vec<VersionId> =
            targets.iter().map(|t| self.shared().run(|core| core.resolve(t)).map(|v| v.id)).collect::<Result<_>>()?;
        self.shared().held_only_by(&ids)
    }

    /// Data that only deleted versions hold: the background worker has yet to free it.
    pub fn pending_reclaim(&self) -> Result<Bytes> {
        self.shared().pending_reclaim()
    }

    /// What differs between two versions of one family, as `to` has it; without `from`, all that `to` stores.
    pub fn diff(&self, from: Option<&str>, to: &str, visit: &mut dyn FnMut(DiffExtent) -> Result<()>) -> Result<()> {
        let new = self.shared().run(|core| core.resolve(to))?;
        let old = from.map(|from| self.shared().run(|core| core.resolve(from))).transpose()?;
        if let (Some(old), Some(from)) = (&old, from)
            && old.family != new.family
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{from} and {to} have no common ancestor; export both instead"),
            ));
        }
        self.shared().diff(old.as_ref(), &new, visit)
    }

    /// Opens a volume or snapshot for I/O. While it is open it cannot be reverted or deleted.
    pub fn open_volume(&self, target: &str, access: Access) -> Result<Volume> {
        let version = self.shared().run(|core| {
            let version = core.resolve(target)?;
            if version.state != State::Head && access == Access::ReadWrite {
                let why = format!("{target} is a snapshot and cannot be written; clone it instead");
                return Err(Error::new(ErrorKind::ReadOnly, why).into());
            }
            core.attach(version.id);
            Ok(version)
        })?;
        Ok(Volume::new(Arc::clone(&self.inner.shared), version.id, target, access, Bytes(version.blocks * BLOCK)))
    }

    /// A queue for one thread's requests.
    pub fn queue(&self) -> Result<Queue> {
        Queue::new(Arc::clone(&self.inner.shared))
    }

    /// Verifies everything while the pool is in use: a checkpoint is taken and walked, its blocks kept from reuse meanwhile.
    pub fn scrub(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport> {
        check::scrub(&self.inner.shared, &self.inner.keeper, progress)
    }

    /// Looks through all deleted versions once more and reclaims whatever nobody holds by now. For pools opened without a
    /// background thread this does all the work; otherwise it wakes the thread.
    pub fn reclaim(&self) -> Result<()> {
        let mut keeper = self.inner.keeper.lock();
        keeper.look_again();
        self.shared().moved.notify_all();
        let alone = self.inner.background.thread.lock().is_none();
        while alone && !keeper.is_idle() {
            keeper.step()?;
        }
        Ok(())
    }

    /// Waits until nothing is left to reclaim; `false` when time ran out.
    pub fn wait_reclaimed(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        loop {
            let idle = self.inner.keeper.lock().is_idle();
            if idle || Instant::now() >= end {
                return idle;
            }
            self.shared().moved.notify_all();
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        self.background.stop.store(true, Ordering::Release);
        self.shared.moved.notify_all();
        let Some(thread) = self.background.thread.lock().take() else {
            return self.last_checkpoint();
        };
        if thread.join().is_err() {
            return Err(Error::new(
                ErrorKind::Poisoned,
                format!("the background worker of pool {} failed", self.path.display()),
            ));
        }
        self.last_checkpoint()
    }

    fn last_checkpoint(&self) -> Result<()> {
        self.shared.lock().refuse_if_poisoned()?;
        let mut keeper = self.keeper.lock();
        let changed = {
            let core = self.shared.lock();
            self.damaged_superblock.is_some()
                || core.journal.last_record() != keeper.superblock().sequence
                || core.cache.dirty_len() > 0
        };
        let result = if changed { keeper.checkpoint_now() } else { Ok(()) };
        self.shared.lock().poison("it was closed");
        result
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let open = self.shared.lock().poisoned.is_none();
        if open && self.background.thread.lock().is_some() {
            // A destructor can tell nobody; without the last checkpoint the next opening replays the journal instead.
            drop(self.close());
        }
    }
}

fn run_keeper(shared: &Shared, keeper: &Mutex<Keeper>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let start = Instant::now();
        let did = keeper.lock().step();
        match did {
            Ok(Did::Housekeeping) => {}
            Ok(Did::Reclaim) => {
                // Guests come first: reclaiming takes a fifth of the time, unless somebody waits for space.
                let pause = start.elapsed() * 4;
                let mut core = shared.lock();
                if !core.admission.space_wanted {
                    shared.moved.wait_for(&mut core, pause.min(Duration::from_millis(20)));
                }
            }
            Ok(Did::Nothing) | Err(_) => {
                let mut core = shared.lock();
                if !stop.load(Ordering::Acquire) {
                    shared.moved.wait_for(&mut core, Duration::from_millis(100));
                }
            }
        }
    }
}
