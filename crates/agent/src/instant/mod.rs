//! One instant of a machine: all its disks, on whatever arrays, and its memory if asked.
//!
//! The report is the last thing to become durable, before anybody is answered: with it the instant is whole, without it
//! everything of that name is rubbish, and is removed before the instant is taken anew. So parts of two attempts are never
//! mixed. Removing goes the other way round: the report first.
//!
//! ```text
//!  rubbish removed -> [frozen] -> writes held, arrays snapshotted (or cut by the hypervisor) -> [thawed] -> report
//! ```

mod cut;
mod quiesce;
mod store;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyframe_agent_api::{
    Bytes, CutMethod, Fault, FaultKind, GuestAnswer, InstantProbe, InstantReport, MemoryInfo, MemoryState, Micros,
    Power, Quiesce, SnapshotId, TakeInstant, Timestamp, VmId, VolumeRef, WorkProgress,
};
use parking_lot::Mutex;

use self::cut::{Disks, GatedCut};
use self::store::{Store, Stored};
use crate::Result;
use crate::array::Arrays;
use crate::exports::Exports;
use crate::fault::{fault, of_io};
use crate::hypervisor::{Cancel, Hypervisor, NoCut};
use crate::life::Life;
use crate::work::Work;

/// Guests complain about a disk that does not answer for half a minute, and QEMU itself may wait behind a held write.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// Takes instants, and keeps their reports and memory images.
pub struct Instants {
    arrays: Arrays,
    exports: Arc<Exports>,
    hypervisor: Arc<dyn Hypervisor>,
    store: Store,
    memory: PathBuf,
    taking: Mutex<HashMap<SnapshotId, Arc<Taking>>>,
    /// Memories that are being verified. Of two who read the same one, who came last is asked.
    reading: Mutex<Vec<(SnapshotId, Arc<Work>)>>,
    life: Life,
}

/// An instant that is being taken, compressed or deleted: one of these at a time.
struct Taking {
    /// What is being done to it.
    what: &'static str,
    work: Work,
}

/// Ends the work on an instant, however it ends.
struct Alone<'a> {
    instants: &'a Instants,
    snapshot: SnapshotId,
    taking: Arc<Taking>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.instants.taking.lock().remove(&self.snapshot);
    }
}

impl Cancel for Taking {
    fn cancelled(&self) -> bool {
        self.work.cancelled()
    }
}

impl Taking {
    fn check(&self, snapshot: SnapshotId) -> Result<()> {
        if self.cancelled() {
            return Err(fault(FaultKind::Conflict, format!("instant {snapshot} was cancelled; nothing of it is left")));
        }
        Ok(())
    }
}

/// What the cut itself tells.
struct Shot {
    at: Timestamp,
    method: CutMethod,
    guest: GuestAnswer,
    paused: Duration,
    held: Duration,
    frozen: Duration,
}

impl Shot {
    fn report(self) -> InstantReport {
        InstantReport {
            at: self.at,
            method: self.method,
            guest: self.guest,
            paused: self.paused.into(),
            held: self.held.into(),
            frozen: self.frozen.into(),
            memory: None,
        }
    }
}

impl Instants {
    /// Reports lie in `instants`, images in `memory`. Images that no report vouches for are removed.
    pub fn open(
        arrays: Arrays,
        exports: Arc<Exports>,
        hypervisor: Arc<dyn Hypervisor>,
        data: &Path,
        life: Life,
    ) -> Result<Instants> {
        let store = Store::open(data.join("instants"), life.clone())?;
        let memory = data.join("memory");
        store.sweep(&memory)?;
        Ok(Instants {
            arrays,
            exports,
            hypervisor,
            store,
            memory,
            taking: Mutex::default(),
            reading: Mutex::default(),
            life,
        })
    }

    /// The path of a memory image, there or not.
    pub fn image(&self, snapshot: SnapshotId) -> PathBuf {
        self.memory.join(format!("{snapshot}.kfm"))
    }

    /// Where memory images lie.
    pub fn memory(&self) -> &Path {
        &self.memory
    }

    /// Takes an instant, or finds it taken. The caller has the machine's turn. A failed call leaves nothing.
    pub fn take(&self, snapshot: SnapshotId, wish: &TakeInstant) -> Result<InstantReport> {
        if let Some(stored) = self.store.read(snapshot)? {
            return stored.answer(snapshot, wish);
        }
        let disks = Disks::new(&self.arrays, &wish.volumes, snapshot)?;
        let alone = self.alone(snapshot, "taken")?;
        let taken = self.take_anew(snapshot, wish, &disks, &alone.taking);
        // Whatever a cancelled step made of it.
        let taken = taken.map_err(|fault| alone.taking.check(snapshot).err().unwrap_or(fault));
        taken.map_err(|fault| self.undo(snapshot, &disks, fault))
    }

    /// Begins a work on an instant, if there is none under way.
    fn alone(&self, snapshot: SnapshotId, what: &'static str) -> Result<Alone<'_>> {
        match self.taking.lock().entry(snapshot) {
            Entry::Occupied(other) => {
                let why = format!("instant {snapshot} is being {}; cancel that or wait for its end", other.get().what);
                Err(fault(FaultKind::Busy, why))
            }
            Entry::Vacant(free) => {
                let taking = Arc::new(Taking { what, work: Work::default() });
                free.insert(Arc::clone(&taking));
                Ok(Alone { instants: self, snapshot, taking })
            }
        }
    }

    fn take_anew(
        &self,
        snapshot: SnapshotId,
        wish: &TakeInstant,
        disks: &Disks<'_>,
        taking: &Taking,
    ) -> Result<InstantReport> {
        disks.delete()?;
        self.remove_image(snapshot)?;
        taking.check(snapshot)?;
        let power = self.hypervisor.status(wish.vm)?.power;
        let shot = if wish.memory {
            self.shoot_with_memory(snapshot, wish, disks, taking, &power)?
        } else if power == Power::Off {
            shoot_at_rest(wish, disks, &power)?
        } else {
            // One that stands still for want of space goes on by itself when there is some.
            self.shoot_on(wish, disks, &power)?
        };
        let mut report = shot.report();
        if wish.memory {
            report.memory = Some(self.hypervisor.image(&self.image(snapshot))?);
        }
        taking.check(snapshot)?;
        self.store.write(snapshot, &Stored { wish: wish.clone(), report: report.clone() })?;
        Ok(report)
    }

    fn shoot_on(&self, wish: &TakeInstant, disks: &Disks<'_>, power: &Power) -> Result<Shot> {
        let deadline = hold(wish);
        let gates = self.exports.gates(&wish.volumes);
        let frozen = quiesce::freeze(&*self.hypervisor, wish, power, &gates)?;
        let mut cut = GatedCut::new(disks, gates, deadline);
        let result = cut.hold_and_cut();
        // Thawed before anything else is decided, however the cut went.
        let (guest, frozen) = frozen.thaw();
        let at = result?;
        quiesce::enough(wish, &guest)?;
        Ok(Shot { at, method: CutMethod::WritesHeld, guest, paused: Duration::ZERO, held: cut.held(), frozen })
    }

    /// The image holds what file systems have not written yet, so freezing them would only leave them frozen in it.
    fn shoot_with_memory(
        &self,
        snapshot: SnapshotId,
        wish: &TakeInstant,
        disks: &Disks<'_>,
        taking: &Taking,
        power: &Power,
    ) -> Result<Shot> {
        if *power == Power::Off {
            return Err(fault(FaultKind::Conflict, format!("machine {} is off and has no memory to store", wish.vm)));
        }
        if wish.quiesce == Quiesce::Required {
            let why = "cannot be quiesced: the file systems would be frozen in the image; take it without memory or without \
                       quiescing";
            return Err(fault(FaultKind::Unsupported, format!("an instant of machine {} with memory {why}", wish.vm)));
        }
        let gates = self.exports.gates(&wish.volumes);
        let mut cut = GatedCut::new(disks, gates, hold(wish));
        let captured = self.hypervisor.capture(wish.vm, &self.image(snapshot), &mut cut, taking);
        let captured = captured.map_err(|fault| cut.blame(fault))?;
        let at = cut.at().ok_or_else(|| {
            fault(FaultKind::Internal, format!("the hypervisor stored the memory of {} without a cut", wish.vm))
        })?;
        let (guest, frozen) = (GuestAnswer::NotAsked, Duration::ZERO);
        Ok(Shot { at, method: captured.method, guest, paused: captured.paused, held: cut.held(), frozen })
    }

    /// Removes what a failed attempt left; what cannot be removed is told, and goes with the next attempt.
    fn undo(&self, snapshot: SnapshotId, disks: &Disks<'_>, fault: Fault) -> Fault {
        if self.life.ended() {
            return fault;
        }
        // A report may have been written when the disk failed to confirm it.
        let gone = self.store.remove(snapshot).and(disks.delete()).and(self.remove_image(snapshot));
        match gone {
            Ok(()) => fault,
            Err(left) => Fault::new(fault.kind, format!("{fault}; parts of it are left over: {left}")),
        }
    }

    fn remove_image(&self, snapshot: SnapshotId) -> Result<()> {
        self.life.check()?;
        for draft in self.drafts(snapshot)? {
            crate::durable::remove_file(&draft)?;
        }
        crate::durable::remove_file(&self.image(snapshot))
    }

    /// Images of it under way, or left by a process that was killed.
    fn drafts(&self, snapshot: SnapshotId) -> Result<Vec<PathBuf>> {
        let failed = |error: &std::io::Error| of_io(format_args!("look through {}", self.memory.display()), error);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.memory).map_err(|error| failed(&error))? {
            let path = entry.map_err(|error| failed(&error))?.path();
            if draft_of(&path) == Some(snapshot) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// What is there of an instant.
    pub fn probe(&self, snapshot: SnapshotId, volumes: &[VolumeRef]) -> Result<InstantProbe> {
        let mut found = Vec::new();
        for volume in volumes {
            if self.arrays.of(volume)?.has_snapshot(&volume.volume, snapshot)? {
                found.push(volume.clone());
            }
        }
        let report = self.store.read(snapshot)?.map(|stored| stored.report);
        Ok(InstantProbe { volumes: found, memory: self.memory_state(snapshot), report })
    }

    /// What is there of its memory.
    pub fn memory_state(&self, snapshot: SnapshotId) -> MemoryState {
        let image = self.image(snapshot);
        // While it is compressed, the whole one is there.
        if !image.exists() && self.taking.lock().contains_key(&snapshot) {
            let drafts = self.drafts(snapshot).unwrap_or_default();
            if let Some(found) = drafts.iter().find_map(|draft| std::fs::metadata(draft).ok()) {
                return MemoryState::Writing { stored: Bytes(found.len()) };
            }
        }
        state(self.hypervisor.image(&image))
    }

    /// The same, after every page of it has been read and compared with its checksum. Called off, nothing is known of it.
    pub fn verify(&self, snapshot: SnapshotId, work: &Arc<Work>) -> Result<MemoryState> {
        let found = self.memory_state(snapshot);
        let MemoryState::Ready(_) = found else { return Ok(found) };
        self.reading.lock().push((snapshot, Arc::clone(work)));
        let found = self.hypervisor.verify(&self.image(snapshot), work);
        self.reading.lock().retain(|(_, other)| !Arc::ptr_eq(other, work));
        if work.cancelled() {
            // Whoever has not gone away asks again, and then perhaps another agent.
            let why = format!("the memory of instant {snapshot} was not verified to its end");
            return Err(fault(FaultKind::Unreachable, why));
        }
        Ok(state(found))
    }

    /// How far the verifying or compressing of a memory is.
    pub fn progress(&self, snapshot: SnapshotId) -> WorkProgress {
        let last = |reading: &Vec<(SnapshotId, Arc<Work>)>| {
            reading.iter().rev().find(|(of, _)| *of == snapshot).map(|(_, work)| work.progress())
        };
        let reading = last(&self.reading.lock());
        reading.or_else(|| Some(self.taking.lock().get(&snapshot)?.work.progress())).unwrap_or_default()
    }

    /// Stores the memory smaller, and the report with it. Called off, it stays as it was.
    pub fn compress(&self, snapshot: SnapshotId) -> Result<MemoryInfo> {
        let alone = self.alone(snapshot, "compressed")?;
        self.life.check()?;
        let info = self.hypervisor.compress(&self.image(snapshot), &alone.taking.work)?;
        if let Some(mut stored) = self.store.read(snapshot)? {
            stored.report.memory = Some(info.clone());
            self.store.write(snapshot, &stored)?;
        }
        Ok(info)
    }

    /// Stores the memory of the machine that was given up for an instant, and adds it to the report. [`FaultKind::NotFound`] if
    /// it is lost.
    pub fn store_memory(&self, snapshot: SnapshotId) -> Result<InstantReport> {
        let report = self.add_memory(snapshot, |image, taking| self.hypervisor.store_aside(snapshot, image, taking))?;
        // Not before the report has it: until then it can be stored again.
        self.hypervisor.drop_aside(snapshot)?;
        Ok(report)
    }

    /// The same of a machine that is there and stands still since before the instant.
    pub fn store_memory_of(&self, snapshot: SnapshotId, vm: VmId) -> Result<InstantReport> {
        self.add_memory(snapshot, |image, taking| self.hypervisor.capture(vm, image, &mut NoCut, taking).map(drop))
    }

    /// Ends what was given up for an instant, stored or not.
    pub fn drop_memory(&self, snapshot: SnapshotId) -> Result<()> {
        let _alone = self.alone(snapshot, "rid of its memory")?;
        self.hypervisor.drop_aside(snapshot)
    }

    /// Whether its memory is in its report.
    pub fn has_memory(&self, snapshot: SnapshotId) -> Result<bool> {
        Ok(self.store.read(snapshot)?.is_some_and(|stored| stored.report.memory.is_some()))
    }

    fn add_memory(
        &self,
        snapshot: SnapshotId,
        store: impl FnOnce(&Path, &Taking) -> Result<()>,
    ) -> Result<InstantReport> {
        let missing = || fault(FaultKind::NotFound, format!("there is no instant {snapshot} for that memory"));
        let alone = self.alone(snapshot, "given its memory")?;
        let mut stored = self.store.read(snapshot)?.ok_or_else(missing)?;
        if stored.report.memory.is_none() {
            let image = self.image(snapshot);
            self.remove_image(snapshot)?;
            store(&image, &alone.taking)?;
            // The guest stood still, whatever was done to its writes.
            stored.report.method = CutMethod::AtRest;
            stored.report.memory = Some(self.hypervisor.image(&image)?);
            self.life.check()?;
            self.store.write(snapshot, &stored)?;
        }
        Ok(stored.report)
    }

    /// Removes an instant's memory and its snapshots of these volumes, whether or not they are there.
    pub fn delete(&self, snapshot: SnapshotId, volumes: &[VolumeRef]) -> Result<()> {
        let _alone = self.alone(snapshot, "deleted")?;
        let disks = Disks::new(&self.arrays, volumes, snapshot)?;
        self.store.remove(snapshot)?;
        self.hypervisor.drop_aside(snapshot)?;
        self.remove_image(snapshot)?;
        disks.delete()
    }

    /// Ends an instant that is being taken or compressed; nothing to do if it is not.
    pub fn cancel(&self, snapshot: SnapshotId) {
        if let Some(taking) = self.taking.lock().get(&snapshot) {
            taking.work.cancel();
        }
    }

    /// Ends all that are being taken, compressed or verified.
    pub fn cancel_all(&self) {
        self.taking.lock().values().for_each(|taking| taking.work.cancel());
        self.reading.lock().iter().for_each(|(_, work)| work.cancel());
    }
}

/// Whose image a file is the beginning of: [`Hypervisor::capture`] and [`Hypervisor::compress`] put words between the name of
/// an image and `.partial`.
fn draft_of(path: &Path) -> Option<SnapshotId> {
    let (id, rest) = path.file_name()?.to_str()?.split_once('.')?;
    (rest.starts_with("kfm.") && rest.ends_with("partial")).then(|| id.parse().ok()).flatten()
}

fn state(image: Result<MemoryInfo>) -> MemoryState {
    match image {
        Ok(info) => MemoryState::Ready(info),
        Err(fault) if fault.kind == FaultKind::NotFound => MemoryState::Absent,
        Err(fault) => MemoryState::Damaged { reason: fault.message },
    }
}

/// How long writes may wait: as wished, but no guest's disk is to seem dead.
fn hold(wish: &TakeInstant) -> Duration {
    Duration::from(wish.deadline).min(LONGEST_HOLD)
}

fn shoot_at_rest(wish: &TakeInstant, disks: &Disks<'_>, power: &Power) -> Result<Shot> {
    let guest = quiesce::at_rest(wish, power)?;
    let at = Timestamp::now();
    disks.snapshot()?;
    let none = Micros(0).into();
    Ok(Shot { at, method: CutMethod::AtRest, guest, paused: none, held: none, frozen: none })
}
